"""Markdown with formulas to HTML, and the formulas' TeX to MathML."""

import json
from html import escape

import pypandoc
from bs4 import BeautifulSoup, NavigableString
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from vitlab.errors import LabError

SPACING_ACCENTS = {"\u0302": "ˆ", "\u0303": "˜", "\u0304": "¯", "\u0307": "˙"}  # combining ones stand askew


class MathRenderer(IPythonRenderer):
    """Markdown to HTML with each formula as `<span class="math">` around its TeX, for `set_formulas`."""

    def inline_math(self, body: str) -> str:
        return f'<span class="math">{escape(body)}</span>'

    def block_math(self, body: str) -> str:
        return f'<span class="math formula">{escape(body)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def markdown_to_html(text: str) -> str:
    """HTML of Markdown with formulas in dollars."""
    return MarkdownWithMath(renderer=MathRenderer(escape=False, exclude_anchor_links=True)).render(text)


def set_formulas(tree: BeautifulSoup) -> None:
    """Replace each formula's TeX by MathML, all in one call of pandoc; LabError names one it cannot read."""
    formulas = tree.select("span.math")
    blocks = []
    for formula in formulas:
        display = "DisplayMath" if "formula" in formula["class"] else "InlineMath"
        blocks.append({"t": "Para", "c": [{"t": "Math", "c": [{"t": display}, formula.get_text().strip()]}]})
    document = {"pandoc-api-version": [1, 23], "meta": {}, "blocks": blocks}
    html = pypandoc.convert_text(json.dumps(document), "html", "json", extra_args=["--mathml", "--wrap=none"])
    for formula, paragraph in zip(formulas, BeautifulSoup(html, "html.parser").find_all("p"), strict=True):
        tex = formula.get_text().strip()
        if paragraph.math is None:
            heading = formula.find_previous("h1")
            place = f" in '{heading.get_text()}'" if heading else ""
            raise LabError(f"the formula '{tex}'{place} cannot be converted; write it in plain LaTeX")
        math = paragraph.math.extract()
        math["alttext"] = tex  # also what the PDF is set from
        math.annotation.decompose()
        math.semantics.unwrap()
        for table in math.select("mtable:has(mtd[columnalign=right])"):
            table["displaystyle"] = "true"  # aligned equations are as large as a single one
        for accent in math.select("mover > mo[accent]"):
            if mark := SPACING_ACCENTS.get(accent.get_text()):
                accent.string, accent["stretchy"], accent.parent["accent"] = mark, "false", "true"
        for bar in math.select("mo[stretchy=true]"):
            if bar.get_text() in "|‖" and not bar.parent.select("mfrac, munder, munderover, mtable, msqrt"):
                bar["stretchy"] = "false"  # a norm of letters is as high as they are
        formula.clear()
        formula.append(math)
        after = formula.next_sibling
        if isinstance(after, NavigableString) and after[:1] in tuple(".,;:)"):  # no line may begin with it
            formula.append(after[0])
            after.replace_with(after[1:])
