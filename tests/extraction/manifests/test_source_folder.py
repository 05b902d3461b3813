"""A folder of videos -> manifest: which files count, their ids and hashes; and the table of sources."""

import hashlib
import os

import pytest
from click.testing import CliRunner

from pipeline.cli.manifest import manifest as command
from pipeline.errors import UserError
from pipeline.manifests.sources.folder import build
from pipeline.manifests.sources.registry import SOURCES, load_source


def fill_folder(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())
    return folder


def test_media_below_the_folder_are_found_sorted_and_hashed(tmp_path):
    fill_folder(tmp_path, "z.MP4", "sub/deep/a.flac", "notes.txt", ".hidden.mp4", ".cache/b.mp4", "mp4")
    heard = []
    manifest = build("clips", tmp_path, lambda *done: heard.append(done)).manifest
    assert heard == [(1, 2), (2, 2)]
    assert [(video.video_id, video.path) for video in manifest.videos] == [
        ("sub__deep__a", "sub/deep/a.flac"),
        ("z", "z.MP4"),
    ]
    assert manifest.videos[1].sha256 == hashlib.sha256(b"z.MP4").hexdigest()
    assert manifest.splits == ()
    assert manifest.vocabulary.tokens == ("<pad>",)


def test_where_two_ids_would_clash_the_suffix_stays(tmp_path):
    fill_folder(tmp_path, "a.mp4", "a.webm", "b.mp4", "s/a.mp4")
    ids = [video.video_id for video in build("clips", tmp_path).manifest.videos]
    assert ids == ["a.mp4", "a.webm", "b", "s__a"]


def test_an_id_that_clashes_even_with_its_suffix_is_refused(tmp_path):
    fill_folder(tmp_path, "s/a.mp4", "s__a.mp4")
    with pytest.raises(UserError, match=r"'s/a\.mp4' and 's__a\.mp4' would both be called"):
        build("clips", tmp_path)


def test_linked_folders_are_followed_once(tmp_path):
    real = fill_folder(tmp_path / "disk", "v.mp4")
    (real / "a").symlink_to(real)
    folder = tmp_path / "clips"
    folder.symlink_to(real)
    assert [video.path for video in build("clips", folder).manifest.videos] == ["v.mp4"]


@pytest.mark.parametrize("linked", ["whole folder", "file"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, linked):
    outside = fill_folder(tmp_path / "disk", "v.mp4")
    folder = fill_folder(tmp_path / "clips", "a.mp4")
    name = "more" if linked == "whole folder" else "b.mp4"
    (folder / name).symlink_to(outside if linked == "whole folder" else outside / "v.mp4")
    with pytest.raises(UserError, match=rf"video '{name}.*' in .*clips' is a link out of that folder, to '.*v\.mp4'"):
        build("clips", folder)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gone\.mp4' cannot be read"):
        build("clips", tmp_path)


def test_a_file_that_the_system_does_not_let_us_read_is_named(tmp_path, monkeypatch):
    fill_folder(tmp_path, "locked.mp4")

    def refuse(file, algorithm):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    with pytest.raises(UserError, match=r"locked\.mp4' cannot be read \(Permission denied\): mend or remove it"):
        build("clips", tmp_path)


def test_a_pipe_that_is_called_like_a_video_is_named_and_not_opened(tmp_path):
    fill_folder(tmp_path / "clips", "a.mp4")
    os.mkfifo(tmp_path / "clips" / "f.mp4")
    arguments = ["build", "folder", "--videos", tmp_path / "clips", "--out", tmp_path / "made"]
    shown = CliRunner().invoke(command, [*map(str, arguments)])
    assert shown.exit_code == 2
    assert len(shown.stderr.splitlines()) == 1
    assert "f.mp4' is no plain file" in shown.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"cr\rx.mp4", r"video 'cr\\rx\.mp4' has a control character in its name: rename the file"),
        (b"sub\x1b/x.mp4", r"video 'sub\\x1b/x\.mp4' has a control character"),
        (b"\xff.mp4", r"video '\\udcff\.mp4' has a name that is not UTF-8: rename the file"),
    ],
)
def test_a_name_that_cannot_stand_in_a_manifest_is_refused(tmp_path, name, message):
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(UserError, match=message):
        build("clips", tmp_path)


def test_a_folder_without_videos_or_no_folder_is_refused(tmp_path):
    fill_folder(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="holds no videos"):
        build("clips", tmp_path)
    with pytest.raises(UserError, match="is not there"):
        build("clips", tmp_path / "absent")


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_of_the_table_resolves(name):
    assert callable(load_source(name).build)
