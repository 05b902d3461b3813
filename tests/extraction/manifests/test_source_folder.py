"""A folder of videos -> manifest: its media files, their ids and hashes; and the registry of sources."""

import hashlib
import json
import os
import re

import av
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli.manifest import manifest as command
from pipeline.errors import UserError
from pipeline.manifests.manifest import load_manifest
from pipeline.manifests.media_files import list_media
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


def kinds(built):
    """Return the kinds of the files that were left out, by path."""
    return {found.subject: found.kind for found in built.skipped}


def test_a_file_whose_id_clashes_even_with_its_suffix_is_left_out(tmp_path):
    fill_folder(tmp_path, "s/a.mp4", "s__a.mp4")
    built = build("clips", tmp_path)
    assert [video.path for video in built.manifest.videos] == ["s/a.mp4"]
    (skipped,) = built.skipped
    assert skipped.message == "videos 's/a.mp4' and 's__a.mp4' would both get the id 's__a.mp4': rename one"


def test_linked_folders_are_followed_once(tmp_path):
    real = fill_folder(tmp_path / "disk", "v.mp4")
    (real / "a").symlink_to(real)
    folder = tmp_path / "clips"
    folder.symlink_to(real)
    assert [video.path for video in build("clips", folder).manifest.videos] == ["v.mp4"]


@pytest.mark.parametrize("linked", ["whole folder", "file"])
def test_a_link_out_of_the_folder_is_left_out(tmp_path, linked):
    outside = fill_folder(tmp_path / "disk", "v.mp4")
    folder = fill_folder(tmp_path / "clips", "a.mp4")
    name = "more" if linked == "whole folder" else "b.mp4"
    (folder / name).symlink_to(outside if linked == "whole folder" else outside / "v.mp4")
    built = build("clips", folder)
    assert [video.path for video in built.manifest.videos] == ["a.mp4"]
    (skipped,) = built.skipped
    assert re.match(rf"video '{name}.*' in .*clips' is a link out of that folder, to '.*v\.mp4'", skipped.message)


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


def test_pipes_are_left_out_and_not_opened(tmp_path):
    fill_folder(tmp_path, "a.mp4")
    os.mkfifo(tmp_path / "f.mp4")
    os.mkfifo(tmp_path / "f")
    assert kinds(build("clips", tmp_path)) == {"f.mp4": "not a regular file", "f": "not media"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"cr\rx.mp4", r"video 'cr\rx.mp4' has the control character U+000D in its name: rename the file"),
        (b"sub\x1b/x.mp4", r"video 'sub\x1b/x.mp4' has the control character U+001B in its name: rename the file"),
        (b"\xff.mp4", r"video '\udcff.mp4' has the byte 0xff, which is not UTF-8, in its name: rename the file"),
        (b"a\\b.mp4", r"video 'a\\b.mp4' has a backslash in its name: rename the file"),
    ],
)
def test_a_file_with_an_invalid_name_is_left_out(tmp_path, name, message):
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(UserError, match=f"contains no videos that can be used: {re.escape(message)}$"):
        build("clips", tmp_path)
    fill_folder(tmp_path, "fine.mp4")
    built = build("clips", tmp_path)
    assert [video.path for video in built.manifest.videos] == ["fine.mp4"]
    assert [found.message for found in built.skipped] == [message]


def test_all_files_that_cannot_be_used_are_in_one_report(tmp_path):
    clips = fill_folder(tmp_path / "clips", "a.mp4", "a\\b.mp4", "c\rd.mp4", "notes.txt", ".hidden.mp4")
    (clips / "gone.mp4").symlink_to("nowhere.mp4")
    arguments = ["build", "folder", "--videos", clips, "--out", tmp_path / "out"]
    shown = CliRunner().invoke(command, [*map(str, arguments)])
    assert shown.exit_code == 3
    for line in (
        "left out, invalid name: 2",
        "left out, not media: 1",
        "left out, hidden: 1",
        "left out, unreadable: 1",
        f"  file '{clips}/gone.mp4' cannot be read (it is a link to 'nowhere.mp4', which does not exist): "
        "fix or remove it",
    ):
        assert line in shown.stderr.splitlines()
    assert shown.stderr.splitlines()[-1] == "3 media files or folders were left out: fix them and build again"
    assert [video.path for video in load_manifest(tmp_path / "out").videos] == ["a.mp4"]
    document = json.loads(CliRunner().invoke(command, [*map(str, arguments), "--json"]).stdout)
    assert {found["subject"]: found["kind"] for found in document["skipped"]} == {
        "a\\b.mp4": "invalid name",
        "c\rd.mp4": "invalid name",
        "notes.txt": "not media",
        ".hidden.mp4": "hidden",
        "gone.mp4": "unreadable",
    }
    assert len(document["skipped"]) == 5


def test_a_subfolder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    fill_folder(tmp_path, "a.mp4", "locked/b.mp4")
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    built = build("clips", tmp_path)
    assert [video.path for video in built.manifest.videos] == ["a.mp4"]
    assert [(found.kind, found.subject) for found in built.skipped] == [("unreadable", "locked")]
    assert "locked' cannot be read (Permission denied)" in built.skipped[0].message


@pytest.mark.parametrize(
    "suffix",
    [*("gif", "vob", "m2t", "m4b", "weba", "amr", "divx", "dv", "ogm", "qt", "mpe"), *("mp4", "MKV", "wav")],
)
def test_media_are_recognised_by_their_suffix_without_being_opened(tmp_path, monkeypatch, suffix):
    fill_folder(tmp_path, f"clip.{suffix}")
    monkeypatch.setattr("builtins.open", lambda *arguments: pytest.fail("a file is opened"))
    assert list_media(tmp_path).paths == [f"clip.{suffix}"]


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        *(("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4")),
        *(("mpegts", "mpeg2video"), ("mpeg", "mpeg2video"), ("flv", "flv1"), ("asf", "mpeg4"), ("gif", "gif")),
        *(("wav", "pcm_s16le"), ("aiff", "pcm_s16be"), ("flac", "flac"), ("ogg", "libopus"), ("mp3", "libmp3lame")),
    ],
)
def test_media_with_an_unknown_suffix_or_none_are_recognised_by_their_content(tmp_path, container, codec):
    clip = tmp_path / "clip.part"
    with av.open(str(clip), "w", format=container) as output:
        if codec in ("pcm_s16le", "pcm_s16be", "flac", "libopus", "libmp3lame"):
            stream = output.add_stream(codec, rate=48_000)
            form = stream.codec_context.codec.audio_formats[0].name
            blocks = av.AudioFrame.from_ndarray(np.zeros((1, 9_600), np.int16), format="s16", layout="mono")
            blocks.sample_rate, blocks.pts = 48_000, 0
            blocks = av.AudioResampler(form, "stereo", 48_000, 960).resample(blocks)
        else:
            stream = output.add_stream(codec, rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            blocks = [av.VideoFrame(64, 64, stream.pix_fmt) for _ in range(9)]
            for number, frame in enumerate(blocks):
                frame.pts = number
        for block in (*blocks, None):
            output.mux(stream.encode(block))
    (tmp_path / "clip").write_bytes(clip.read_bytes())
    videos = build("clips", tmp_path).manifest.videos
    assert [(video.video_id, video.path) for video in videos] == [("clip", "clip"), ("clip.part", "clip.part")]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"video", b"GIF is a format", b"all free text", b"ID3 is a tag", b"\xff\xfeU\x00T\x00F\x00", b"G" * 300),
        *(
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0\x00\x10JFIF",
            b"PK\x03\x04",
            b"1\n00:00:01,000 --> 00:00:02,000\nHi\n",
        ),
        *(b"\x00\x00\x00\x1cftypheic\x00\x00", b"\x00\x00\x00\x1cftypavif\x00\x00", b"RIFF\x00\x00\x00\x00WEBPVP8 "),
    ],
)
def test_other_files_are_not_media(tmp_path, content):
    fill_folder(tmp_path, "a.mp4")
    (tmp_path / "other.xyz").write_bytes(content)
    assert kinds(build("clips", tmp_path)) == {"other.xyz": "not media"}


def test_a_file_of_ten_terabytes_is_listed_but_not_hashed(tmp_path):
    fill_folder(tmp_path, "a.mp4")
    with (tmp_path / "large.mp4").open("wb") as file:
        file.truncate(10**13)
    built = build("clips", tmp_path)
    assert [bool(video.sha256) for video in built.manifest.videos] == [True, False]
    assert built.notes == ("1 files have more than 20 GB and were not hashed (first: 'large.mp4')",)


def test_an_empty_or_missing_folder_is_an_error(tmp_path):
    fill_folder(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="contains no videos"):
        build("clips", tmp_path)
    with pytest.raises(UserError, match="absent' does not exist"):
        build("clips", tmp_path / "absent")


@pytest.mark.parametrize("name", SOURCES)
def test_every_registered_source_can_be_loaded(name):
    assert callable(load_source(name).build)
