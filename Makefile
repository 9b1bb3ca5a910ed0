# make report [PROFILE=quick] [DATA=folder] [SET="name=value …"] [OUT=folder]    make test    make quick-test    make lab
PYTHON  ?= python3
PROFILE ?= quick
VENV    := .venv
BIN     := $(VENV)/bin
# two processes test at once, each whole files (tests/conftest.py): what a file's tests share is made once
AT_ONCE := -n 2 --no-loadscope-reorder
# as they were typed: make itself would read $ in them
override DATA := $(value DATA)
override SET := $(value SET)
override OUT := $(value OUT)
export DATA SET OUT
# set-up leaves compiling to the first import, which is to keep what it compiled: else every start takes four times as long
unexport PYTHONDONTWRITEBYTECODE

.PHONY: report test quick-test lab constraints clean
report: $(VENV)/installed
	@$(BIN)/python -m vitlab report --profile "$(PROFILE)" --data "$$DATA" --out "$$OUT" --words "$$SET"

test: $(VENV)/installed
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m pytest $(AT_ONCE)

# Without what takes long: notebooks, reports, processes that are killed.
quick-test: $(VENV)/installed
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m pytest $(AT_ONCE) tests -o addopts=-ra -m "not slow"

lab: $(VENV)/installed
	@$(BIN)/python -m vitlab lab

# Made again when a version has changed. Modules are compiled when they are first imported, not all of them here: a minute.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("vitlab needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": name another one with make PYTHON=python3.12 …")'
	@echo "Setting up $(VENV): a few minutes, once."
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments: install its venv (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt -e '.[test]'
	@touch $@

# What is installed now, with Ray, which CI tests, without the libraries of a GPU, which follow from torch.
constraints: $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[test,cluster]'
	@sed -n '/^#/p' constraints.txt > $(VENV)/constraints
	@$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(nvidia|cuda|triton)' >> $(VENV)/constraints
	@mv $(VENV)/constraints constraints.txt

clean:
	rm -rf $(VENV)
