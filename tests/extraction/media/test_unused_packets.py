"""Pictures left out between the last one looked at and the next IDR picture: which, and that nothing else changes."""

import random
from types import SimpleNamespace

import av
import media_maker
import numpy as np
import pytest
from counted_decoding import FINE, REQUEST, SIZE, decode, same, same_where_noticed

from pipeline.media.decoders.pyav import decoder as pyav
from pipeline.media.decoders.pyav.unused_packets import HELD_PACKETS, drop_unused_packets
from pipeline.media.timeline import DecodeRequest

COUNTED = b"\x01d\x00\x1e\xff\xe1\x00"
# The NAL units of a packet by its letter; capitals are pictures looked at.
UNITS = {"i": (6, 5), "I": (9, 5), "p": (1,), "W": (1,), "m": (5, 1), "s": (7, 1), "r": (7, 8, 5), "d": (2,), "n": (1,)}


class Packet(bytes):
    """Bytes that look like PyAV's packet."""

    def has_sidedata(self, kind):
        return kind == "new_extradata" and self.letter == "n"


def packets(letters, length_bytes=4):
    for letter in letters:
        kinds = UNITS.get(letter, ())
        units = b"".join((4).to_bytes(length_bytes, "big") + bytes([0x60 | kind, 1, 2, 3]) for kind in kinds)
        packet = Packet(units + b"x" if letter == "x" else units)
        packet.letter, packet.stream = letter, "audio" if letter == "a" else VIDEO
        yield packet, not letter.islower() or letter == "a"


VIDEO = SimpleNamespace(codec_context=SimpleNamespace(extradata=COUNTED))


def left(letters, **options):
    return "".join(packet.letter for packet, _ in drop_unused_packets(packets(letters, **options), VIDEO))


@pytest.mark.parametrize(
    ("given", "handed_on"),
    [
        ("WppIW", "WIW"),
        ("WpapiaW", "WaiaW"),
        ("WpppW", "WpppW"),
        ("WppippiW", "WiW"),
        ("Wppippi", "Wi"),
        ("Wpp", "Wpp"),
        ("apiW", "aiW"),
    ],
)
def test_what_stands_between_the_last_picture_looked_at_and_a_fresh_start_is_left_out(given, handed_on):
    assert left(given) == handed_on


@pytest.mark.parametrize("special", "sdnx")
def test_what_may_matter_later_is_handed_on_with_all_before_it(special):
    assert left(f"Wp{special}piW") == f"Wp{special}iW"


def test_a_fresh_start_with_parameters_is_handed_on_itself():
    assert left("WprpiW") == "WriW"


def test_a_picture_of_both_kinds_is_no_fresh_start():
    assert left("WppmW") == "WppmW"


def test_units_may_be_counted_with_one_byte_and_where_they_are_not_all_is_handed_on(monkeypatch):
    monkeypatch.setattr(VIDEO.codec_context, "extradata", COUNTED[:4] + b"\xfc" + COUNTED[5:])
    assert left("WppIW", length_bytes=1) == "WIW"
    for without in (None, b"", b"\x00\x00\x00\x01\x67d\x00\x1e"):
        monkeypatch.setattr(VIDEO.codec_context, "extradata", without)
        assert left("WppIW") == "WppIW"


def test_no_more_is_held_than_is_said():
    letters = "W" + "p" * (HELD_PACKETS + 20) + "iW"
    assert left(letters) == "W" + "p" * HELD_PACKETS + "iW"


@pytest.mark.parametrize("sizes", [(SIZE,), (SIZE, FINE)], ids=["one a second", "eight a second too"])
@pytest.mark.parametrize("group", [4, 10, 26])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_fewer_pictures_are_decoded_and_the_same_ones_chosen(tmp_path, monkeypatch, suffix, group, sizes):
    path = media_maker.write_clip(tmp_path / f"clip.{suffix}", media_maker.steady(6), (0, 6), group=group)
    request = DecodeRequest(seconds=20, frame_sizes=sizes)
    media, (decoded,) = decode(path, request)
    assert same(media, decode(path, request, codecs=())[0])
    monkeypatch.setattr(pyav, "drop_unused_packets", lambda packets, video: packets)
    _, (without,) = decode(path, request)
    assert decoded < without if len(sizes) == 1 else decoded <= without


def test_damaged_files_are_read_as_by_a_whole_pass_and_guesses_are_told(tmp_path):
    whole = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(5), (0, 5), group=10).read_bytes()
    path, reasons = tmp_path / "damaged.mp4", []
    for seed in range(12):
        data = bytearray(whole)
        random.seed(seed)
        for _ in range(40):
            data[random.randrange(len(data) // 10, len(data) * 9 // 10)] ^= 1 << random.randrange(8)
        path.write_bytes(data)
        media, other = decode(path, REQUEST)[0], decode(path, REQUEST, codecs=())[0]
        reasons.append(media.visual.reason)
        assert same_where_noticed(media, other), seed
    guessed = [reason for reason in reasons if "guessed parts of" in reason]
    assert 0 < len(guessed) < len(reasons)


def test_a_guessed_picture_is_told_though_only_those_made_of_it_are_looked_at(tmp_path):
    path = media_maker.write_clip(tmp_path / "clip.mp4", media_maker.steady(3), group=75)
    whole = decode(path)[0]
    with av.open(str(path)) as container:
        hit = next(packet for packet in container.demux(video=0) if packet.pts * packet.time_base * 25 == 21)
    data = bytearray(path.read_bytes())
    data[hit.pos + hit.size // 2 : hit.pos + hit.size] = bytes(hit.size - hit.size // 2)
    path.write_bytes(data)
    media, passes = decode(path)
    assert passes[1:] == [75]
    assert not np.array_equal(media.frames[SIZE], whole.frames[SIZE])
    assert media.visual.reason == "the decoder guessed parts of 1 damaged pictures"
