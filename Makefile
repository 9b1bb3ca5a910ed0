# make report [PROFILE=quick] [DATA=folder] [SET="name=value …"] [OUT=folder]    make test    make lab
PYTHON  ?= python3
PROFILE ?= quick
VENV    := .venv
BIN     := $(VENV)/bin
export DATA SET OUT

.PHONY: report test lab clean
report: $(VENV)/installed
	@$(BIN)/python -m vitlab report --profile "$(PROFILE)" --data "$$DATA" --out "$$OUT" --set $(SET)

test: $(VENV)/installed
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m pytest

lab: $(VENV)/installed
	@$(BIN)/jupyter lab notebooks

# Made again when pyproject.toml has changed.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("vitlab needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": name another one with make PYTHON=python3.12 …")'
	@echo "Setting up $(VENV): a few minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV)
