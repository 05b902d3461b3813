"""The report: golden tables, pooled seeds, intervals, runs that cannot be combined, a self-contained page."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import paths
import pytest
from result_rows import accuracies, folders_of, row, save, save_predictions

from pipeline.errors import UserError
from pipeline.manifests.templates import COLUMNS, TYPES
from train.report.page import write_report
from train.report.plots import colours_of
from train.report.published import QUESTIONS, PublishedRow, comparable_rows, read_published
from train.report.recovery_plot import draw_recoveries, find_recoveries
from train.report.tables import build_blocks, columns_of, group_by_split
from train.report.text import comma_separated, latex, markdown
from train.runs.log import write_time
from train.runs.results import Accuracies, Count, Feature, Masking, ResultRow

GOLDEN = paths.GOLDEN / "report_tables.md"
PAPER = (
    *("A-Cnt", "A-Comp", "A", "V-Cnt", "V-Loc", "V"),
    *("AV-Exist", "AV-Cnt", "AV-Loc", "AV-Comp", "AV-Temp", "AV", "All"),
)


def floor(correct: int = 6, **changes: object) -> ResultRow:
    return row("template-majority", correct=correct, kind="floor", **changes)


def sample_rows() -> list[ResultRow]:
    rows = []
    for scenario, loss in (("audio-missing", 3), ("complete", 0)):
        rows += [floor(scenario=scenario)]
        rows += [row("zero-fill", seed, 9 + seed - loss, scenario=scenario) for seed in (0, 1, 2)]
        rows += [row("zero-fill", 0, 7, scenario=scenario, inputs="question")]
        rows += [row("rmm-avr", 0, 10 - loss, scenario=scenario)]
    return rows


def test_tables_equal_the_golden_ones(tmp_path: Path) -> None:
    rows = sample_rows()
    save_predictions(tmp_path, rows)
    assert markdown(build_blocks(rows, folders_of(rows, tmp_path))) == GOLDEN.read_text(encoding="utf-8")


def test_the_columns_are_the_papers_with_its_exchanged_ones_corrected() -> None:
    assert tuple(column.label for column in columns_of([row()])) == PAPER


def test_other_datasets_have_a_column_per_type() -> None:
    types = ("Why", "Colour")
    columns = columns_of([row(accuracies=accuracies(3, types))])
    assert [column.label for column in columns] == ["Colour", "Why", "All"]


def test_a_type_named_as_the_total_has_a_column_of_its_own() -> None:
    counts = accuracies(3, ("All", "Other"))
    (block,) = build_blocks([row(accuracies=counts)])
    records = {record["column"]: record for record in csv.DictReader(io.StringIO(comma_separated([block])))}
    columns = {"type All": counts.types["All"], "type Other": counts.types["Other"], "All": counts.overall}
    assert {name: int(record["questions"]) for name, record in records.items()} == {
        name: count.questions for name, count in columns.items()
    }
    assert [float(record["accuracy"]) for record in records.values()] == [
        pytest.approx(count.accuracy, abs=1e-4) for count in columns.values()
    ]


def test_avqa_has_the_papers_eight_columns_in_its_order_even_if_types_are_missing() -> None:
    result = row(dataset="avqa", accuracies=accuracies(3, ("Which", "Where", "Come from")))
    labels = ["Used for", "When", "Before/Next", "Why", "Where", "Happening", "Come from", "Which", "All"]
    assert [column.label for column in columns_of([result])] == labels
    table = markdown(build_blocks([result]))
    assert f"| {' | '.join(labels)} |" in table
    assert "| zero-fill | – | – | – | – | 19.05 | – | 22.73 | 15.00 | 19.05 |" in table


def test_recovery_errors_are_reported_with_the_accuracy_of_the_same_runs(tmp_path: Path) -> None:
    rows = [row(seed=s, correct=8 + s, scenario="audio-missing", recovery=1.0 + s) for s in (0, 1, 2)]
    rows += [row("rmm", correct=9, scenario="audio-missing", recovery=0.25), row("drfuse", scenario="audio-missing")]
    recoveries = find_recoveries(build_blocks([*rows, row("rmm", correct=12)]))
    assert {s: [(m.label, m.error) for m in members] for s, members in recoveries.items()} == {
        "audio-missing": [("rmm", 0.25), ("zero-fill", 2.0)]
    }
    accuracies_of_seeds = [result.accuracies.overall.accuracy for result in rows[:3]]
    assert recoveries["audio-missing"][1].accuracy == pytest.approx(sum(accuracies_of_seeds) / 3)
    page = write_report(save(tmp_path / "runs", rows), tmp_path / "out").read_text(encoding="utf-8")
    assert "Recovered features and accuracy" in page
    assert "<td>0.250</td>" in page
    plain = write_report(save(tmp_path / "plain", [row()]), tmp_path / "out").read_text(encoding="utf-8")
    assert "Recovered features and accuracy" not in plain


def test_the_page_shows_the_median_seconds_per_epoch_or_none(tmp_path: Path) -> None:
    runs = save(tmp_path / "runs", [row(), row("rmm", run="rmm-0")])
    for epoch, seconds in ((1, 90.0), (2, 7.25), (3, 8.75), (1, 9.5)):
        write_time(tmp_path / "runs" / "rmm-0", epoch, seconds)
    page = write_report(runs, tmp_path / "out").read_text(encoding="utf-8")
    assert page.count("<td>8.8</td>") == 1
    assert page.count('<td>–</td><td class="settings">') == 1


def test_the_number_of_multiple_choice_questions_is_shown_if_there_are_any(tmp_path: Path) -> None:
    count = accuracies(3).overall.questions
    block = build_blocks([row(multiple_choice=7)])[0]
    assert block.questions == f"{count} questions, 7 of them multiple choice"
    assert f"complete\n\n{block.questions}\n" in markdown([block])
    plain = build_blocks([row()])[0]
    assert plain.questions == f"{count} questions"
    assert plain.questions not in markdown([plain])
    page = write_report(save(tmp_path, [row(multiple_choice=7)]), tmp_path / "out").read_text(encoding="utf-8")
    assert block.questions in page


def test_the_number_of_questions_with_unknown_answers_is_shown_if_there_are_any(tmp_path: Path) -> None:
    block = build_blocks([row(unknown_answers=4)])[0]
    assert block.questions == f"{accuracies(3).overall.questions} questions, 4 with unknown answers (wrong)"
    assert block.questions in markdown([block])
    page = write_report(save(tmp_path, [row(unknown_answers=4)]), tmp_path / "out").read_text(encoding="utf-8")
    assert block.questions in page


def test_lines_are_ordered_floors_references_methods() -> None:
    block = build_blocks(sample_rows())[0]
    assert block.scenario == "complete"
    assert [line.label for line in block.lines] == [
        "template-majority",
        "question-only",
        "zero-fill",
        "rmm-avr",
    ]


def test_a_row_below_the_template_floor_is_marked() -> None:
    text = markdown(build_blocks([floor(correct=6), row(correct=5)]))
    assert text.count("†") == len(PAPER) + 1
    assert markdown(build_blocks([floor(correct=6), row(correct=6)])).count("†") == 1


def test_an_interval_is_over_seeds_and_videos_from_three_seeds_on(tmp_path: Path) -> None:
    rows = [row(seed=seed, correct=8 + seed) for seed in (0, 1, 2)]
    save_predictions(tmp_path, rows)
    for seeds, over in ((1, "videos"), (2, "videos"), (3, "seeds and videos")):
        block = build_blocks([*rows[:seeds], floor()], folders_of(rows, tmp_path))[0]
        cells = {line.label: line.cells for line in block.lines}
        assert {cells["zero-fill"][label].interval.over for label in PAPER} == {over}
        assert {cells["template-majority"][label].interval.over for label in PAPER} == {"questions"}
        assert f"] {over} |" in markdown([block])
        assert f"] {over} &" in latex([block])
    columns = {record["column"]: record for record in csv.DictReader(io.StringIO(comma_separated([block])))}
    assert columns["All"]["interval"] == over, "of the last line, the model"
    of_all, of_type = (block.lines[-1].cells[label] for label in ("All", "A-Cnt"))
    assert of_all.interval.high - of_all.interval.low < of_type.interval.high - of_type.interval.low


def test_without_predictions_a_run_has_the_interval_of_its_row_and_several_seeds_have_none(tmp_path: Path) -> None:
    single = row(interval=(10.0, 90.0))
    (block,) = build_blocks([single])
    interval = block.lines[0].cells["All"].interval
    assert (interval.low, interval.high, interval.over) == (10.0, 90.0, "videos")
    assert block.lines[0].cells["A-Cnt"].interval.over == "questions"
    rows = [single, *(row(seed=seed, correct=9, interval=(10.0, 90.0)) for seed in (1, 2))]
    save_predictions(tmp_path, rows)
    next((tmp_path / "zero-fill-1").glob("predictions-*")).unlink()
    (block,) = build_blocks(rows, folders_of(rows, tmp_path))
    assert {cell.interval for cell in block.lines[0].cells.values()} == {None}
    assert "| – | 0, 1, 2 |" in markdown([block])
    (record, *_) = csv.DictReader(io.StringIO(comma_separated([block])))
    assert [record[name] for name in ("low", "high", "interval")] == ["", "", "none"]
    page = write_report(save(tmp_path, rows), tmp_path / "out").read_text(encoding="utf-8")
    assert 'title="3 seeds, no interval"' in page


def test_a_column_has_the_videos_with_questions_of_its_types(tmp_path: Path) -> None:
    counts = {"Why": Count(correct=14, questions=28), "Where": Count(correct=3, questions=19)}
    total = Count(correct=17, questions=47)
    rows = [row(seed=s, accuracies=Accuracies(overall=total, groups={}, types=counts)) for s in (0, 1, 2)]
    save_predictions(tmp_path, rows, videos=100)
    cells = build_blocks(rows, folders_of(rows, tmp_path))[0].lines[0].cells
    assert cells["Why"].interval.over == "seeds and videos"
    assert cells["Where"].interval is None, "nineteen videos"


def test_predictions_without_the_types_of_their_row_are_an_error(tmp_path: Path) -> None:
    result = row()
    save_predictions(tmp_path, [result])
    (path,) = (tmp_path / result.run).glob("predictions-*")
    path.write_text(path.read_text().replace('"type":"Audio Counting"', '"type":"Audio"'))
    with pytest.raises(UserError, match=r"run zero-fill-0 in complete have 0 questions of A-Cnt, its results 20"):
        build_blocks([result], folders_of([result], tmp_path))


def test_the_page_marks_intervals_that_do_not_cover_seeds(tmp_path: Path) -> None:
    rows = [*(row("rmm", seed, 8 + seed) for seed in (0, 1, 2)), row("zero-fill"), floor()]
    page = write_report(save_predictions(tmp_path, rows), tmp_path / "out").read_text(encoding="utf-8")
    lines = re.findall(r"<tr[^>]*><th>\s*([\w-]+)</th>(.*?)</tr>", page[page.index("<h3>complete") :], re.DOTALL)
    marks = {name: set(re.findall(r"<small>[\d.]+–[\d.]+( <i>.</i>)?</small>", cells)) for name, cells in lines}
    assert {name: marks[name] for name in ("rmm", "zero-fill", "template-majority")} == {
        "rmm": {""},
        "zero-fill": {" <i>v</i>"},
        "template-majority": {" <i>q</i>"},
    }
    assert re.search(r'title="[\d.]+ to [\d.]+: interval over seeds and videos; 3 seeds, 216 questions"', page)
    assert re.search(r'title="[\d.]+ to [\d.]+: Wilson interval over questions; 1 run, 216 questions"', page)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize(
    ("correct", "questions", "interval"),
    [(6, 18, (33.33333333333333, 33.33333333333333)), (4, 4, None), (4, 4, (100.0, 100.0)), (0, 7, (0.0, 0.0))],
)
def test_an_interval_that_collapses_is_replaced_for_one_run_and_omitted_for_several(
    tmp_path: Path, correct: int, questions: int, interval: tuple[float, float] | None, seeds: tuple[int, ...]
) -> None:
    counts = Accuracies(overall=Count(correct=correct, questions=questions), groups={}, types={})
    rows = [row(seed=seed, accuracies=counts, interval=interval, scenario="natural") for seed in seeds]
    page = write_report(save(tmp_path / "runs", rows), tmp_path / "out")
    (line,) = csv.DictReader((page.parent / "results.csv").open(encoding="utf-8"))
    if len(seeds) > 1:
        assert (line["interval"], line["low"]) == ("none", "")
        return
    assert line["interval"] == "questions"
    assert float(line["high"]) - float(line["low"]) > 10
    assert f"Wilson interval over questions; 1 run, {questions} questions" in page.read_text(encoding="utf-8")
    assert "] questions |" in (page.parent / "tables.md").read_text(encoding="utf-8")


def test_two_runs_with_the_same_seed_are_an_error() -> None:
    with pytest.raises(UserError, match=r"runs 'a' and 'b' of zero-fill share seed 0; pass only one"):
        build_blocks([row(run="a"), row(run="b")])


@pytest.mark.parametrize(
    ("changes", "distinctions"),
    [
        ({"questions_sha256": "11"}, [" (questions 00)", " (questions 11)"]),
        ({"seconds": 10}, [" (10 s per video)", " (60 s per video)"]),
    ],
)
def test_runs_on_different_questions_or_seconds_are_in_different_tables(
    changes: dict[str, object], distinctions: list[str]
) -> None:
    blocks = build_blocks([row(), row("rmm", **changes)])
    assert [block.distinction for block in blocks] == distinctions
    assert [len(block.lines) for block in blocks] == [1, 1]
    assert len(group_by_split(blocks)) == 2
    assert f"test{distinctions[0]}: complete" in markdown(blocks)


def test_seeds_on_other_feature_values_or_training_questions_are_not_pooled() -> None:
    other = {"vggish": Feature(fingerprint="ab" * 32, weights="seeded", sha256="ee" * 32)}
    (block,) = build_blocks([row(), row(seed=1, features=other)])
    assert [line.seeds for line in block.lines] == [(0,), (1,)]
    assert all("[features " in line.label for line in block.lines)
    (block,) = build_blocks([row(), row(seed=1, trained_on_sha256="11")])
    assert [line.seeds for line in block.lines] == [(0,), (1,)]


def test_masks_of_one_name_that_hide_different_modalities_are_two_scenarios() -> None:
    maskings = [Masking(rates={"audio": 0.5}, unit="question", seed=0, sha256=text) for text in ("aa", "bb")]
    rows = [row(scenario="masked-audio=0.5", masking=masking) for masking in maskings]
    assert [block.scenario for block in build_blocks(rows)] == ["masked-audio=0.5 [aa]", "masked-audio=0.5 [bb]"]


def test_questions_that_training_used_are_marked() -> None:
    (block,) = build_blocks([row(seen="selection"), row("rmm")])
    assert block.questions.endswith("; in 1 of 2 runs the epoch was selected on them")
    assert block.questions in markdown([block])


def test_runs_with_different_training_settings_are_not_pooled() -> None:
    rows = [row(run="a"), row(run="b", seed=1, training={"epochs": 9})]
    (block,) = build_blocks(rows)
    assert [line.label for line in block.lines] == ["zero-fill [a]", "zero-fill [b]"]
    (block,) = build_blocks([r.model_copy(update={"run": f"{r.run}-seed{r.seed}"}) for r in rows])
    assert [line.label for line in block.lines] == ["zero-fill [a]", "zero-fill [b]"]


def with_fingerprint(fingerprint: str) -> dict[str, Feature]:
    return {"vggish": Feature(fingerprint=fingerprint * 32, weights="file", sha256="dd" * 32)}


@pytest.mark.parametrize(
    "pair",
    [
        [row(features=with_fingerprint("ab")), row(correct=6, features=with_fingerprint("cd"))],
        [row(run="a"), row(run="a", correct=6, training={"epochs": "2 of 3"}, checkpoint_sha256="ee" * 32)],
        [floor(6), floor(8)],
    ],
    ids=["stores", "checkpoints", "floors"],
)
def test_every_line_of_a_block_has_a_label_of_its_own(pair: list[ResultRow]) -> None:
    rows = [*pair, row("rmm", seed=1)]
    (block,) = build_blocks(rows)
    assert len({line.label for line in block.lines}) == len(block.lines) == 3
    assert len({record["row"] for record in csv.DictReader(io.StringIO(comma_separated([block])))}) == 3


def test_one_run_on_two_stores_has_two_lines_on_the_page(tmp_path: Path) -> None:
    rows = [row(correct=correct, features=with_fingerprint(f)) for correct, f in ((8, "ab"), (6, "cd"))]
    page = write_report(save(tmp_path, rows), tmp_path / "r").read_text(encoding="utf-8")
    overall = page[page.index("Overall accuracy") :]
    overall = overall[: overall.index("</table>")]
    assert all(f"{r.accuracies.overall.accuracy:.2f}" in overall for r in rows)


def test_dollar_signs_in_labels_are_no_mathematics() -> None:
    runs = ("lr$1_$", "lr$1_2$")
    rows = [row("rmm", run=run, training={"epochs": len(run)}, scenario="audio-missing", recovery=0.1) for run in runs]
    blocks = build_blocks(rows)
    plot = draw_recoveries(find_recoveries(blocks), colours_of(blocks))
    texts = re.findall(r"<text[^>]*>(.*?)</text>", re.sub("<!--.*?-->", "", plot, flags=re.DOTALL), flags=re.DOTALL)
    assert {f"rmm [{run}]" for run in runs} <= {*texts}
    assert any("tspan" in text for text in texts), "the powers of ten on the logarithmic axis"


def test_every_accuracy_in_the_csv_follows_from_its_counts(tmp_path: Path) -> None:
    rows = sample_rows()
    save_predictions(tmp_path, rows)
    lines = list(csv.DictReader(io.StringIO(comma_separated(build_blocks(rows, folders_of(rows, tmp_path))))))
    assert len(lines) == 2 * 4 * len(PAPER)
    for line in lines:
        share = 100 * int(line["correct"]) / int(line["questions"])
        assert float(line["accuracy"]) == pytest.approx(share, abs=1e-3)
        assert float(line["low"]) <= float(line["accuracy"]) <= float(line["high"])


class Sources(HTMLParser):
    """Collect the external resources of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        external = [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
        self.found += [tag] if tag in ("script", "link", "iframe", "img") else external


def test_the_page_is_self_contained_and_warns_of_seeded_weights(tmp_path: Path) -> None:
    page = write_report(save(tmp_path / "runs", sample_rows()), tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    parser = Sources()
    parser.feed(text)
    assert parser.found == []
    assert "url(http" not in text
    assert "Seeded weights" in text
    assert text.count("<svg") == 2
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "gains.csv",
        "index.html",
        "results.csv",
        "tables.md",
        "tables.tex",
    ]


def test_pretrained_weights_give_no_warning_and_names_are_escaped(tmp_path: Path) -> None:
    features = {"<b>": Feature(fingerprint="ab", weights="pretrained", sha256="dd")}
    page = write_report(save(tmp_path, [row(features=features)]), tmp_path / "out")
    assert "Seeded weights" not in page.read_text()
    assert "&lt;b&gt;" in page.read_text()


def test_the_same_rows_give_the_same_page(tmp_path: Path) -> None:
    runs = save(tmp_path / "runs", sample_rows())
    first = write_report(runs, tmp_path / "a").read_bytes()
    assert write_report(runs, tmp_path / "b").read_bytes() == first


QUESTIONS_OF_TYPE = {
    "json": (1022, 601, 1199, 1228, 995, 1274, 927, 1115, 824),
    "json_update": (1017, 594, 1197, 1225, 988, 1265, 920, 1101, 822),
}
# Contradictory cells and averages of the paper, of which it is unknown which one is wrong.
CONTRADICTORY = {("audio-missing", "avst", "rmm-avr"): 0.15}


@pytest.mark.parametrize("published", read_published(), ids=lambda p: f"{p.table}-{p.scenario}-{p.label}")
def test_every_published_accuracy_is_a_possible_count_and_averages_follow_from_cells(published: PublishedRow) -> None:
    sizes = QUESTIONS_OF_TYPE[published.release]
    assert sum(sizes) == QUESTIONS[published.release]
    if len(published.cells) < len(COLUMNS):
        for column in (c for c in COLUMNS if c.label in published.cells):
            questions = sum(sizes[TYPES.index(t)] for t in column.types or TYPES)
            correct = round(published.cells[column.label] * questions / 100)
            assert round(100 * correct / questions, 2) == pytest.approx(published.cells[column.label], abs=0.0051)
        return
    singles = [column for column in COLUMNS if len(column.types) == 1]
    correct = {c.types[0]: round(published.cells[c.label] * n / 100) for c, n in zip(singles, sizes, strict=True)}
    for column, size in zip(singles, sizes, strict=True):
        accuracy = round(100 * correct[column.types[0]] / size, 2)
        assert accuracy == pytest.approx(published.cells[column.label], abs=0.0051)
    for column in COLUMNS:
        types = column.types or TYPES
        accuracy = 100 * sum(correct[t] for t in types) / sum(sizes[TYPES.index(t)] for t in types)
        bound = CONTRADICTORY.get((published.scenario, published.backbone, published.method), 0.006)
        assert accuracy == pytest.approx(published.cells[column.label], abs=bound)


def accuracies_of(questions: int) -> Accuracies:
    return Accuracies(overall=Count(correct=6_000, questions=questions), groups={}, types={})


def test_published_rows_are_shown_only_next_to_the_same_questions() -> None:
    pretrained = {"vggish": Feature(fingerprint="ab" * 32, weights="file", sha256="dd")}
    same = {"dataset": "music-avqa", "release": "json_update", "scenario": "audio-missing", "features": pretrained}
    same["accuracies"] = accuracies_of(9_129)
    (block,) = build_blocks([row(**same)])
    assert [r.method for r in comparable_rows(block)] == [
        *("rmm-avr", "prompts", "shaspec", "actionmae", "drfuse", "avr")
    ]
    seeded = {"vggish": Feature(fingerprint="ab" * 32, weights="seeded", sha256="dd")}
    for change in (
        *({"dataset": "demo"}, {"release": "v2"}, {"scenario": "both-missing"}, {"split": "val"}),
        *({"accuracies": accuracies_of(9_129 * 98 // 100)}, {"accuracies": accuracies_of(9_185)}, {"features": seeded}),
    ):
        (other,) = build_blocks([row(**{**same, **change})])
        assert comparable_rows(other) == []
    (fewer,) = build_blocks([row(**{**same, "accuracies": accuracies_of(9_100)})])
    assert comparable_rows(fewer) == comparable_rows(block)
    (older,) = build_blocks([row(**{**same, "release": "json", "accuracies": accuracies_of(9_185)})])
    assert [r.method for r in comparable_rows(older)] == ["bare", "rmm"]
    assert "69.71" in markdown([block])
    assert "69.71" in latex([block])


def test_latex_tables_have_a_cell_per_column_and_escaped_text() -> None:
    text = latex(build_blocks(sample_rows()))
    assert text.count(r"\begin{tabular}{l" + "r" * 15 + "}") == 2
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in lines} == {15}
    assert r"95\,\% interval" in text
    assert not re.search(r"(?<!\\)[%#_]", text)


ODD_TYPES = {
    "a|b": (r"a\|b", "a|b"),
    "two\nlines": ("two lines", "two lines"),
    "\\|": (r"\\\|", r"\textbackslash{}|"),
    "{x}^~": ("{x}^~", r"\{x\}\textasciicircum{}\textasciitilde{}"),
    r"5 \%": (r"5 \\%", r"5 \textbackslash{}\%"),
}


def test_question_types_with_markup_stay_in_their_cell() -> None:
    blocks = build_blocks([row(release="|\n{", accuracies=accuracies(3, tuple(ODD_TYPES)))])
    cells = len(ODD_TYPES) + len(["line", "All", "interval", "seeds"])
    as_markdown, as_latex = markdown(blocks), latex(blocks)
    tables = [line for line in as_markdown.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in tables] == [cells + 1] * 3
    assert r"## demo \| {, test: complete" in as_markdown
    assert r"\caption{demo | \{, test: complete; 110 questions.}" in as_latex
    for in_markdown, in_latex in ODD_TYPES.values():
        assert f"| {in_markdown} |" in tables[0]
        assert f"& {in_latex} &" in as_latex


def test_the_error_for_a_run_without_results_has_its_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty.results\.jsonl is missing"):
        write_report([tmp_path / "empty"], tmp_path / "out")
