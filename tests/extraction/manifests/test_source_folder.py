"""A folder of videos -> manifest: its media files, their ids and hashes; and the registry of sources."""

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


def test_media_in_the_folder_and_subfolders_are_sorted_and_hashed(tmp_path):
    fill_folder(tmp_path, "z.MP4", "sub/deep/a.flac", "notes.txt", ".hidden.mp4", ".cache/b.mp4", "mp4")
    calls = []
    manifest = build("clips", tmp_path, lambda *call: calls.append(call)).manifest
    assert calls == [(1, 2), (2, 2)]
    assert [(video.video_id, video.path) for video in manifest.videos] == [
        ("sub__deep__a", "sub/deep/a.flac"),
        ("z", "z.MP4"),
    ]
    assert manifest.videos[1].sha256 == hashlib.sha256(b"z.MP4").hexdigest()
    assert manifest.splits == ()
    assert manifest.vocabulary.tokens == ("<pad>",)


def test_ids_that_would_clash_keep_the_suffix(tmp_path):
    fill_folder(tmp_path, "a.mp4", "a.webm", "b.mp4", "s/a.mp4")
    ids = [video.video_id for video in build("clips", tmp_path).manifest.videos]
    assert ids == ["a.mp4", "a.webm", "b", "s__a"]


def test_an_id_that_clashes_even_with_its_suffix_is_an_error(tmp_path):
    fill_folder(tmp_path, "s/a.mp4", "s__a.mp4")
    with pytest.raises(UserError, match=r"'s/a\.mp4' and 's__a\.mp4' would both get the id 's__a"):
        build("clips", tmp_path)


def test_linked_folders_are_followed_once(tmp_path):
    real = fill_folder(tmp_path / "disk", "v.mp4")
    (real / "a").symlink_to(real)
    folder = tmp_path / "clips"
    folder.symlink_to(real)
    assert [video.path for video in build("clips", folder).manifest.videos] == ["v.mp4"]


@pytest.mark.parametrize("linked", ["whole folder", "file"])
def test_a_link_out_of_the_folder_is_an_error(tmp_path, linked):
    outside = fill_folder(tmp_path / "disk", "v.mp4")
    folder = fill_folder(tmp_path / "clips", "a.mp4")
    name = "more" if linked == "whole folder" else "b.mp4"
    (folder / name).symlink_to(outside if linked == "whole folder" else outside / "v.mp4")
    with pytest.raises(UserError, match=rf"video '{name}.*' in .*clips' is a link out of that folder, to '.*v\.mp4'"):
        build("clips", folder)


def test_the_error_of_a_broken_link_has_its_name(tmp_path):
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gone\.mp4' cannot be read"):
        build("clips", tmp_path)


def test_the_error_of_a_file_without_read_permission_has_its_name(tmp_path, monkeypatch):
    fill_folder(tmp_path, "locked.mp4")

    def refuse(file, algorithm):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    with pytest.raises(UserError, match=r"locked\.mp4' cannot be read \(Permission denied\): fix or remove it"):
        build("clips", tmp_path)


def test_a_pipe_with_the_name_of_a_video_is_an_error_and_not_opened(tmp_path):
    fill_folder(tmp_path / "clips", "a.mp4")
    os.mkfifo(tmp_path / "clips" / "f.mp4")
    arguments = ["build", "folder", "--videos", tmp_path / "clips", "--out", tmp_path / "out"]
    result = CliRunner().invoke(command, [*map(str, arguments)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "f.mp4' is not a regular file" in result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"cr\rx.mp4", r"video 'cr\\rx\.mp4' has a control character in its name: rename the file"),
        (b"sub\x1b/x.mp4", r"video 'sub\\x1b/x\.mp4' has a control character"),
        (b"\xff.mp4", r"video '\\udcff\.mp4' has a name that is not UTF-8: rename the file"),
    ],
)
def test_a_name_that_is_not_printable_utf8_is_an_error(tmp_path, name, message):
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(UserError, match=message):
        build("clips", tmp_path)


def test_an_empty_or_missing_folder_is_an_error(tmp_path):
    fill_folder(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="contains no videos"):
        build("clips", tmp_path)
    with pytest.raises(UserError, match="absent' does not exist"):
        build("clips", tmp_path / "absent")


@pytest.mark.parametrize("name", SOURCES)
def test_every_registered_source_can_be_loaded(name):
    assert callable(load_source(name).build)
