"""The user's CSV table -> manifest, with the line of each error."""

import hashlib

import pytest

from pipeline.errors import UserError
from pipeline.manifests.sources.table import build


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "qa.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_three_columns_are_sufficient(tmp_path):
    table = write(
        tmp_path, "video,question,answer\na.mp4,Who  sings？,Ann\nsub/b,Is it, loud?\n".replace("t, l", "t l")
    )
    with pytest.raises(UserError, match=r"qa\.csv:3: 2 values for 3 columns"):
        build("mine", table)
    built = build("mine", write(tmp_path, "video,question,answer\na.mp4,Who  sings？,Ann\nsub/b,Is it loud?,yes\n"))
    first, second = built.manifest.questions["train"]
    assert (first.question_id, first.video_id, first.text) == ("1", "a", "Who sings?")
    assert (first.type, first.modality, first.choices) == ("unspecified", "unspecified", None)
    assert second.video_id == "sub__b"
    assert [(v.video_id, v.path, v.sha256) for v in built.manifest.videos] == [
        ("a", "a.mp4", ""),
        ("sub__b", "sub/b.mp4", ""),
    ]
    assert built.manifest.vocabulary.answers == ("Ann", "yes")
    assert built.manifest.vocabulary.tokens == ("<pad>", "Who", "sings", "Is", "it", "loud")
    assert built.notes == ("no splits given: all questions are in 'train'",)


def test_every_optional_column_is_read(tmp_path):
    text = (
        "\ufeffVideo, Question ,ANSWER,type,modality,split,choices,question_id,remark\r\n"
        'a,"Red, or\nblue?",red,Colour,visual,Test,red | blue,q7,x\r\n'
        "\r\n"
        "b,How many?,two,Audio Counting,,train,,q8,y\r\n"
    )
    built = build("mine", write(tmp_path, text))
    (test,), (train,) = built.manifest.questions["test"], built.manifest.questions["train"]
    assert (test.text, test.type, test.modality) == ("Red, or blue?", "Colour", "Visual")
    assert (test.question_id, test.choices) == ("q7", ("red", "blue"))
    assert train.modality == "Audio"
    assert built.manifest.vocabulary.answers == ("two",)
    assert built.notes[0] == "columns not used: remark"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,question,answer,Answer\na,b,c,d\n", r"qa\.csv:1: column 'answer' is there 2 times: keep one of them"),
        ("video;question;answer\na;b;c\n", r"qa\.csv:1: column 'video' is missing in 'video;q"),
        ("", r"qa\.csv:1: column 'video' is missing"),
        ("video,question,answer\n\n", "contains no questions"),
        ("video,question,answer\na,Who?,Ann\n,Who?,Ann\n", r"qa\.csv:3: column 'video' is empty"),
        ("video,question,answer\na,Who?,\n", r"qa\.csv:2: column 'answer' is empty"),
        ("video,question,answer\na,?,Ann\n", r"qa\.csv:2: question '\?' has no words"),
        ("video,question,answer\n../a,Who?,Ann\n", r"qa\.csv:2: video path '\.\./a' leaves"),
        ("video,question,answer\na\x1bb,Who?,Ann\n", r"qa\.csv:2: video 'a\\x1bb' has the control character U\+001B"),
        ("video,question,answer\na\\b,Who?,Ann\n", r"qa\.csv:2: video 'a\\\\b' has a backslash in its name"),
        ("video,question,answer,split\na,Who?,Ann,dev\n", r"qa\.csv:2: split 'dev' is not one of train, v"),
        ("video,question,answer,modality\na,Who?,Ann,smell\n", r"qa\.csv:2: modality 'smell' is not one of"),
        ("video,question,answer,choices\na,Who?,Ann,Bob|Cid\n", r"qa\.csv:2: answer 'Ann' is not one of"),
        (
            "video,question,answer,question_id\na,Who?,Ann,1\na,What?,Ann,2\nb,Who?,Ann,1\n",
            r"qa\.csv:4: question_id '1' is already used in line 2",
        ),
    ],
)  # fmt: skip
def test_each_error_has_its_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        build("mine", write(tmp_path, text))


@pytest.mark.parametrize("rows", [1, 20_000])
@pytest.mark.parametrize("column", ["question", "answer"])
def test_a_quote_that_is_not_closed_is_reported_with_its_line(tmp_path, rows, column):
    unclosed = 'c,"Who?,Ann\n' if column == "question" else 'c,Who?,"Ann\n'
    text = "video,question,answer\na,Who?,Ann\n" + unclosed + "b,Who?,Ann\n" * rows
    with pytest.raises(UserError, match=r"qa\.csv:3: not valid CSV \(.*\): check the quotes of this line"):
        build("mine", write(tmp_path, text))


@pytest.mark.parametrize(
    ("names", "files", "difference"),
    [
        (
            ("93", "Clip", "ok"),
            ("00000093.mp4", "other.mp4", "ok.mp4"),
            "1 nearly match a file: '93' and '00000093.mp4'",
        ),
        (("CLIP", "ok"), ("clip.mp4", "ok.mp4"), "'CLIP' and 'clip.mp4' differ in case"),
        (("sub/Clip007", "ok"), ("sub/clip7.mp4", "ok.mp4"), "differ in case and leading zeros"),
        (("caf\u00e9", "ok"), ("cafe\u0301.mp4", "ok.mp4"), "differ in Unicode normalisation (NFC against NFD)"),
    ],
)
def test_a_missing_video_whose_name_nearly_matches_a_file_gets_a_hint(tmp_path, names, files, difference):
    for path in files:
        (tmp_path / "clips" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / path).write_bytes(path.encode())
    rows = "".join(f"{name},Who?,Ann\n" for name in names)
    built = build("mine", write(tmp_path, "video,question,answer\n" + rows), tmp_path / "clips")
    assert any(difference in note for note in built.notes), built.notes


def test_the_error_if_no_video_is_found_has_the_hint(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "007.mp4").touch()
    with pytest.raises(
        UserError, match=r"'7' and '007\.mp4' differ in leading zeros: write them as the files are named"
    ):
        build("mine", write(tmp_path, "video,question,answer\n7,Who?,Ann\n"), tmp_path / "clips")


def test_an_unreadable_video_is_missing_and_listed_with_others_that_cannot_be_used(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"a")
    (tmp_path / "clips" / "b.mp4").symlink_to(tmp_path / "clips" / "gone.mp4")
    (tmp_path / "clips" / "c\\d.mp4").touch()
    (tmp_path / "clips" / "notes.txt").touch()
    head = "video,question,answer\na,Who?,Ann\n"
    assert build("mine", write(tmp_path, head), tmp_path / "clips").skipped == ()
    built = build("mine", write(tmp_path, head + "b,Who?,Ann\n"), tmp_path / "clips")
    assert built.counts == {"missing_videos": 1}
    assert [(found.kind, found.subject) for found in built.skipped] == [
        ("invalid name", "c\\d.mp4"),
        ("unreadable", "b.mp4"),
    ]


def test_a_missing_table_and_another_encoding_are_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        build("mine", tmp_path / "absent.csv")
    with pytest.raises(UserError, match="is not UTF-8 text: save it"):
        build("mine", write(tmp_path, "video,question,answer\na,é?,b\n", "latin-1"))


def test_videos_are_found_by_path_with_or_without_suffix_and_by_stem(tmp_path):
    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    for path in ("a.mp4", "a.webm", "sub/b.mkv", "sub/c.avi"):
        (folder / path).write_bytes(path.encode())
    rows = "".join(f"{video},Who?,Ann\n" for video in ("a.mp4", "./a.webm", "sub/b", "c", "gone"))
    built = build("mine", write(tmp_path, "video,question,answer\n" + rows), folder)
    paths = {video.video_id: video.path for video in built.manifest.videos}
    assert paths == {
        "a.mp4": "a.mp4",
        "a.webm": "a.webm",
        "sub__b": "sub/b.mkv",
        "c": "sub/c.avi",
        "gone": "gone.mp4",
    }
    assert built.manifest.videos[2].sha256 == hashlib.sha256(b"sub/b.mkv").hexdigest()
    assert built.counts == {"missing_videos": 1}
    assert any("'gone'" in note for note in built.notes)


def test_the_error_of_an_ambiguous_name_has_all_its_files(tmp_path):
    for path in ("s/a.mp4", "t/a.mp4"):
        (tmp_path / "clips" / path).parent.mkdir(parents=True)
        (tmp_path / "clips" / path).touch()
    table = write(tmp_path, "video,question,answer\na,Who?,Ann\n")
    with pytest.raises(UserError, match=r"video 'a' is ambiguous in .* \(s/a\.mp4 or t/a\.mp4\): use its path"):
        build("mine", table, tmp_path / "clips")


def test_the_vocabulary_is_open_if_another_split_has_other_words(tmp_path):
    head, known = "video,question,answer,split\n", "a,Is it loud?,yes,train\na,Is it loud?,no,train\n"
    closed = build("mine", write(tmp_path, head + known + "a,Is it loud?,no,test\n"))
    assert not closed.manifest.vocabulary.is_open
    assert not closed.notes
    built = build("mine", write(tmp_path, head + known + "a,Is it quiet?,yes,test\n"))
    assert built.manifest.vocabulary.tokens == ("<pad>", "<unk>", "Is", "it", "loud")
    assert built.notes == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video;question;answer\na;Is it loud?;yes\n", "separated by commas, not by semicolons$"),
        ("video\tquestion\tanswer\na\tIs it loud?\tyes\n", "separated by commas, not by tabs$"),
        ("video|question|answer\n", "separated by commas, not by vertical bars$"),
        ("sep=;\nvideo;question;answer\n", "commas, not by semicolons, and without the line 'sep=' of Excel$"),
        ("sep=,\nvideo,question,answer\n", "separated by commas, and without the line 'sep=' of Excel$"),
        ("video,question\n", "separated by commas$"),
    ],
)
def test_the_error_for_a_header_names_the_separator_that_it_has(tmp_path, content, message):
    (tmp_path / "qa.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        build("mine", tmp_path / "qa.csv")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_the_error_for_a_table_in_utf_16_says_so(tmp_path, encoding):
    (tmp_path / "qa.csv").write_bytes("\ufeffvideo,question,answer\n".encode(encoding))
    with pytest.raises(UserError, match="is UTF-16 text: save it as CSV in UTF-8"):
        build("mine", tmp_path / "qa.csv")
