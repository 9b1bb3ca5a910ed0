"""Figures stand between paragraphs, near their place, and leave no hole."""

from vitlab.report.pages import PAGE, Block, arranged, holes


def text(height: float = 60) -> Block:
    return Block("text", "text", height)


def figure(height: float = 300) -> Block:
    return Block("figure", "figure", height)


CHAPTER = Block("= 1.", "chapter", 40)
HEADING = Block("== 1.1", "heading", 30)
CONCLUSION = Block("== Conclusion", "conclusion", 30)


def test_figure_that_does_not_fit_leaves_a_hole() -> None:
    [hole] = holes([CHAPTER, text(400), figure()])
    assert 200 < hole < PAGE - 400


def test_text_goes_on_over_the_page() -> None:
    assert holes([CHAPTER, text(600), text(600)]) == []


def test_figure_moves_behind_text_that_fills_the_page() -> None:
    late = figure()
    order = arranged([CHAPTER, text(400), late, *(text() for _ in range(6))])
    assert max(holes(order), default=0) < PAGE / 4
    assert 2 < order.index(late) < 8


def test_figure_that_fits_stays_where_it_is() -> None:
    blocks = [CHAPTER, text(), figure(200), text(), figure(200), text()]
    assert arranged(blocks) == blocks


def test_figures_keep_their_order_their_chapter_and_out_of_the_conclusion() -> None:
    one, two = figure(500), figure(400)
    chapter = [CHAPTER, text(300), one, HEADING, text(), two, CONCLUSION, *(text() for _ in range(9))]
    order = arranged([*chapter, CHAPTER, text()])
    assert order.index(one) < order.index(two) < order.index(CONCLUSION)
    assert sorted(map(id, order)) == sorted(map(id, [*chapter, order[-2], order[-1]]))


def test_no_figure_parts_a_heading_from_its_text() -> None:
    order = arranged([CHAPTER, text(420), figure(), HEADING, text(), text(), text()])
    assert order[order.index(HEADING) + 1].kind == "text"
