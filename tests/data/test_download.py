"""A download ends as the right file or as none, whatever the server does. All servers here are on this machine."""

import contextlib
import hashlib
import http.server
import io
import itertools
import os
import re
import sys
import threading

import numpy as np
import pytest

from vitnp.data import DataError
from vitnp.data import download as module
from vitnp.data.download import download

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Answers each request with the next of `answers`, the last one again and again; notes what was asked."""

    def __init__(self):
        self.answers, self.asked, self.encodings, self.done = [whole], [], [], threading.Event()
        numbers, outer = itertools.count(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append((self.path, self.headers.get("Range")))
                outer.encodings.append(self.headers.get_all("Accept-Encoding"))
                answer = outer.answers[min(next(numbers), len(outer.answers) - 1)]
                answer(self, outer)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *arguments: None  # a client may leave whenever it likes
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def url(self, name="file.gz"):
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    @property
    def ranges(self):
        return [asked for _, asked in self.asked]

    def close(self):
        self.done.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def start_of(handler):
    """Where the client wants to go on."""
    found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    return int(found[1]) if found else 0


def send(handler, body, length=None, status=200, **headers):
    handler.send_response(status)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def ranged(handler, body, length):
    start = start_of(handler)
    extra = {"Content_Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}
    send(handler, body, length, 206 if start else 200, **extra)


def whole(handler, server):
    body = CONTENT[start_of(handler) :]
    ranged(handler, body, len(body))


def cut(handler, server, after=100_000):
    body = CONTENT[start_of(handler) :]
    ranged(handler, body[:after], len(body))


def ignores_range(handler, server):
    send(handler, CONTENT, len(CONTENT))


def web_page(handler, server):
    send(handler, b"<html>log in first</html>", 25, Content_Type="text/html")


def flipped(handler, server):
    start = start_of(handler)
    body = bytearray(CONTENT)
    body[200_000] ^= 1
    ranged(handler, bytes(body[start:]), len(body) - start)


def short_without_length(handler, server):
    send(handler, CONTENT[:1000])


def whole_without_length(handler, server):
    send(handler, CONTENT)


def endless(handler, server):
    send(handler, CONTENT)
    while not server.done.is_set():
        handler.wfile.write(bytes(1 << 16))


def stalls(handler, server):
    body = CONTENT[start_of(handler) :]
    ranged(handler, body[:50_000], len(body))
    handler.wfile.flush()
    if not server.done.wait(10):
        server.asked.append(("the client", "waited in vain"))


def without_end(handler, server, piece, pause):
    """Send a piece again and again."""
    while not server.done.wait(pause):
        handler.wfile.write(piece)


def drips(handler, server):
    send(handler, b"", len(CONTENT))
    without_end(handler, server, b"x", 0.02)


def drips_in_a_chunk(handler, server):
    send(handler, b"", Transfer_Encoding="chunked")
    without_end(handler, server, b"1", 0.02)


def never_begins(handler, server):
    without_end(handler, server, b"HTTP/1.1 100 Continue\r\n\r\n", 0.0001)


def begins_slowly(handler, server):
    without_end(handler, server, b"H", 0.02)


def gone(handler, server):
    send(handler, b"", 0, 404)


def forbidden(handler, server):
    send(handler, b"", 0, 403)


def other_part(handler, server):
    send(handler, CONTENT[1:], len(CONTENT) - 1, 206, Content_Range=f"bytes 1-{len(CONTENT) - 1}/{len(CONTENT)}")


@pytest.fixture
def serve(monkeypatch):
    """Start a server with these answers."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(*answers):
        servers.append(Server())
        servers[-1].answers = answers
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "file.gz"


def fetch(target, *servers, **named):
    urls = [server if isinstance(server, str) else server.url() for server in servers]
    return download(urls, target, size=len(CONTENT), sha256=SHA256, **named)


def refusal(target, *servers, **named):
    with pytest.raises(DataError) as caught:
        fetch(target, *servers, **named)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    return str(caught.value)


def assert_complete(target):
    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == [target.name]  # no .part and no .lock is left


# what servers do


def test_a_file_arrives_whole_in_a_folder_that_is_made(serve, target):
    assert fetch(target, serve(whole)) == target
    assert_complete(target)


def test_a_cut_connection_is_resumed_where_it_was_cut(serve, target):
    server = serve(cut)
    fetch(target, server)
    assert_complete(target)
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_that_ignores_the_range_restarts_from_0(serve, target):
    server = serve(cut, ignores_range)
    fetch(target, server)
    assert_complete(target)
    assert server.ranges == [None, "bytes=100000-"]


def test_a_web_page_with_status_200_leads_to_the_next_mirror(serve, target):
    fetch(target, serve(web_page), serve(whole))
    assert_complete(target)


def test_a_flipped_bit_is_found_and_the_file_thrown_away(serve, target):
    said = refusal(target, serve(flipped))
    assert "sent other bytes, with SHA-256" in said
    assert os.listdir(target.parent) == []


def test_after_a_flipped_bit_the_next_mirror_starts_from_0(serve, target):
    good = serve(whole)
    fetch(target, serve(flipped), good)
    assert_complete(target)
    assert good.ranges == [None]


def test_a_short_body_without_a_length_is_not_taken_for_the_file(serve, target):
    assert "ended after 1000 of 300000 bytes" in refusal(target, serve(short_without_length))


def test_a_whole_body_without_a_length_is_taken(serve, target):
    fetch(target, serve(whole_without_length))
    assert_complete(target)


def test_an_endless_body_is_cut_at_the_expected_size(serve, target):
    fetch(target, serve(endless))
    assert_complete(target)


def test_a_stall_times_out_and_is_tried_again(serve, target):
    server = serve(stalls, whole)
    fetch(target, server, timeout=0.2)
    assert_complete(target)
    assert server.ranges == [None, "bytes=50000-"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (drips, r"sent only \d+ bytes in 0.2 seconds"),
        (drips_in_a_chunk, r"sent only \d+ bytes in 0.2 seconds"),
        (never_begins, "did not begin to send the file in 0.2 seconds"),
        (begins_slowly, "did not begin to send the file in 0.2 seconds"),
        (lambda handler, server: server.done.wait(10), "was silent for 0.2 seconds"),
    ],
    ids=["drips", "drips in a chunk", "never begins", "begins slowly", "silent"],
)
def test_a_server_that_keeps_us_waiting_is_given_up_after_three_attempts(serve, target, answer, said):
    server = serve(answer)
    assert re.search(f"{server.url()}: {said}", refusal(target, server, timeout=0.2))
    assert len(server.asked) == 3


def test_a_server_that_stalls_often_is_left_for_the_next_which_goes_on(serve, target):
    first, second = serve(stalls), serve(whole)
    fetch(target, first, second, timeout=0.2)
    assert_complete(target)
    assert (len(first.asked), second.ranges) == (3, ["bytes=150000-"])


@pytest.mark.parametrize(
    ("every_ten_seconds", "said"),
    [
        ([11_000] * 100, None),
        ([9_000] * 3, "sent only 27000 bytes in 30 seconds"),
        ([10**6] * 3 + [9_000] * 3, "sent only 27000 bytes in 30 seconds"),
    ],
    ids=["steady", "slow", "slow in the end"],
)
def test_a_server_is_waited_for_as_long_as_it_sends_a_kilobyte_a_second(monkeypatch, every_ten_seconds, said):
    clock, counts = [0.0], iter(every_ten_seconds)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    class Slow(io.RawIOBase):
        def readinto(self, buffer):
            clock[0] += 10
            return next(counts)

    paced = module._Paced(Slow(), timeout=30.0)
    paced.expect_file()
    with pytest.raises(module._Stalled, match=said) if said else contextlib.nullcontext():
        for _ in every_ten_seconds:
            paced.readinto(b"")


def test_the_page_of_a_redirect_is_not_read(serve, target):
    goal = serve(whole)

    def endless_page(handler, server):
        send(handler, b"", 10**12, 302, Location=goal.url())
        without_end(handler, server, bytes(1 << 16), 0)

    fetch(target, serve(endless_page))
    assert_complete(target)


def test_the_file_is_asked_for_as_it_is(serve, target):
    server = serve(whole)
    fetch(target, server)
    assert server.encodings == [["identity"]]


def test_what_a_server_says_is_one_line_of_plain_characters(serve, target):
    def red(handler, server):
        handler.wfile.write(b"HTTP/1.1 404 \x1b[31mred\x85\r\nContent-Length: 0\r\n\r\n")

    assert r"answers 404 \x1b[31mred" in refusal(target, serve(red))


@pytest.mark.parametrize(("answer", "said"), [(gone, "answers 404"), (forbidden, "answers 403")])
def test_a_refusal_leads_to_the_next_mirror_at_once(serve, target, answer, said):
    first, second = serve(answer), serve(gone)
    assert f"{first.url()}: {said}" in refusal(target, first, second)
    assert (len(first.asked), len(second.asked)) == (1, 1)


def test_where_nothing_arrives_nothing_is_left(serve, target):
    refusal(target, serve(gone))
    assert os.listdir(target.parent) == []


def test_another_length_is_refused_before_the_body_is_read(serve, target):
    server = serve(lambda handler, server: send(handler, b"", 10**12))
    assert "offers 1000000000000 bytes instead of 300000" in refusal(target, server)


def test_a_part_that_was_not_asked_for_is_refused(serve, target):
    target.parent.mkdir()
    target.with_name("file.gz.part").write_bytes(CONTENT[:1000])
    assert "was asked for the bytes from 1000 on, and sends others" in refusal(target, serve(other_part))


def test_a_connection_that_brings_nothing_is_given_up_after_three_attempts(serve, target):
    server = serve(lambda handler, server: ranged(handler, b"", len(CONTENT) - start_of(handler)))
    assert "ended after 0 of 300000 bytes" in refusal(target, server)
    assert len(server.asked) == 3


def test_a_connection_that_is_cut_often_is_resumed_as_long_as_it_brings_something(serve, target):
    server = serve(lambda handler, server: cut(handler, server, after=50_000))
    fetch(target, server)
    assert_complete(target)
    assert len(server.asked) == 6


def test_a_connection_that_brings_a_few_bytes_at_a_time_is_given_up(serve, target):
    server = serve(lambda handler, server: cut(handler, server, after=10))
    assert "ended after 30 of 300000 bytes" in refusal(target, server)


def test_a_mirror_that_is_not_there_leads_to_the_next(serve, target):
    closed = serve(whole)
    url = closed.url()
    closed.server.server_close()
    fetch(target, url, serve(whole))
    assert_complete(target)


def test_redirects_are_followed(serve, target):
    goal = serve(whole)
    fetch(target, serve(lambda handler, server: send(handler, b"", 0, 302, Location=goal.url())))
    assert_complete(target)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("ftp://127.0.0.1/x", "redirects to ftp://127.0.0.1/x, which is not https:// or http://"),
        ("file:///etc/passwd", "Redirection to url 'file:///etc/passwd' is not allowed"),
    ],
)
def test_redirects_that_leave_the_web_are_refused(serve, target, place, said):
    assert said in refusal(target, serve(lambda handler, server: send(handler, b"", 0, 302, Location=place)))


def test_redirects_in_a_circle_are_refused(serve, target):
    assert "infinite loop" in refusal(target, serve(lambda handler, server: send(handler, b"", 0, 302, Location="/a")))


def test_https_is_not_given_up_by_a_redirect():
    with pytest.raises(module._Refused, match="redirects to http://x/, which is not https://"):
        module._check_redirect("https://x/", "http://x/")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "/etc/passwd"])
def test_what_is_no_web_address_is_refused(target, url):
    assert refusal(target, url).startswith(f"{url}: not a web address; expected one that begins with https://")


def test_in_the_end_each_address_has_its_reason_and_the_place_is_named(serve, target):
    servers = serve(gone), serve(web_page)
    said = refusal(target, *servers)
    assert said == (
        f"{target}: could not be downloaded ({servers[0].url()}: answers 404 Not Found; "
        f"{servers[1].url()}: sends a web page); expected 300000 bytes with SHA-256 {SHA256}: check the network, or "
        "get the file elsewhere and put it there; train_digits.py needs no network"
    )


# what is there before


def test_a_file_that_is_there_is_not_fetched_again(serve, target):
    server = serve(whole)
    fetch(target, server)
    fetch(target, server)
    assert len(server.asked) == 1


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x"], ids=["other size", "other content"])
def test_another_file_of_that_name_is_never_overwritten(serve, target, content):
    target.parent.mkdir()
    target.write_bytes(content)
    with pytest.raises(DataError, match=r"file.gz: is there, but is not the file with SHA-256 \w+; move it away"):
        fetch(target, serve(whole))
    assert target.read_bytes() == content


def test_ctrl_c_keeps_what_has_arrived_and_the_next_call_goes_on_there(serve, target, monkeypatch):
    receive, server = module._next_bytes, serve(whole)

    def interrupted(response, most, calls=itertools.count()):  # noqa: B008
        if next(calls) == 1:
            raise KeyboardInterrupt
        return receive(response, most)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_next_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(target, server)
    kept = (target.parent / "file.gz.part").stat().st_size
    assert 0 < kept < len(CONTENT)
    fetch(target, server)
    assert server.ranges == [None, f"bytes={kept}-"]
    assert_complete(target)


@pytest.mark.parametrize(
    "part", [b"x" * 1000, CONTENT + b"x", b"x" * len(CONTENT)], ids=["wrong", "too long", "complete and wrong"]
)
def test_a_part_of_something_else_does_no_harm(serve, target, part):
    target.parent.mkdir()
    target.with_name("file.gz.part").write_bytes(part)
    fetch(target, serve(whole))
    assert_complete(target)


needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")


@needs_links
@pytest.mark.parametrize("beside", ["file.gz.part", ".file.gz.vitnp-lock"])
def test_a_link_beside_the_target_leads_nowhere(serve, target, beside):
    target.parent.mkdir()
    precious = target.parent.parent / "precious"
    precious.write_bytes(b"x" * 500)
    target.with_name(beside).symlink_to(precious)
    said = refusal(target, serve(whole))
    assert said == (
        f"{target.with_name(beside)}: a link, a folder or another special file; expected an ordinary file or none: "
        "move it away"
    )
    assert precious.read_bytes() == b"x" * 500


@needs_links
def test_a_link_that_appears_at_the_last_moment_leads_nowhere_either(serve, target, monkeypatch):
    target.parent.mkdir()
    precious = target.parent.parent / "precious"
    precious.write_bytes(b"x" * 500)
    target.with_name("file.gz.part").symlink_to(precious)
    before = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: os.stat(__file__) if str(path).endswith(".part") else before(path))
    assert "Too many levels of symbolic links" in refusal(target, serve(whole))
    assert precious.read_bytes() == b"x" * 500


@pytest.mark.parametrize("beside", ["file.gz.part", ".file.gz.vitnp-lock"])
def test_a_folder_beside_the_target_is_named_and_not_the_one_around(serve, target, beside):
    target.with_name(beside).mkdir(parents=True)
    assert refusal(target, serve(whole)).startswith(f"{target.with_name(beside)}: a link, a folder or another")


@needs_links
def test_a_link_to_nothing_in_place_of_the_target_is_named(serve, target):
    target.parent.mkdir()
    target.symlink_to(target.parent / "nowhere")
    assert refusal(target, serve(whole)).startswith(f"{target}: is there, but is not the file with SHA-256")


@pytest.mark.parametrize("name", ["file.gz.lock", ".file.gz.vitnp-lock"])
def test_a_file_of_the_user_is_never_removed_as_a_lock(serve, target, name):
    target.parent.mkdir()
    target.with_name(name).write_text("notes")
    with contextlib.suppress(DataError):
        fetch(target, serve(whole))
    assert target.with_name(name).read_text() == "notes"


def test_a_complete_part_needs_no_server(serve, target):
    target.parent.mkdir()
    target.with_name("file.gz.part").write_bytes(CONTENT)
    server = serve(whole)
    fetch(target, server)
    assert_complete(target)
    assert server.asked == []


def test_two_at_once_share_one_download(serve, target):
    server = serve(whole)
    threads = [threading.Thread(target=fetch, args=(target, server)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_complete(target)
    assert len(server.asked) == 1


def test_the_lock_of_a_process_that_died_does_not_hold(serve, target):
    target.parent.mkdir()
    target.with_name(".file.gz.vitnp-lock").write_bytes(b"")
    fetch(target, serve(whole))
    assert_complete(target)


def test_a_lock_that_its_last_holder_removed_is_taken_again(serve, target, monkeypatch):
    lock, tried, fetched = target.with_name(".file.gz.vitnp-lock"), module.try_lock, []

    def try_lock(file, calls=itertools.count()):  # noqa: B008
        if next(calls) == 0:
            os.remove(lock)
        return tried(file)

    monkeypatch.setattr(module, "try_lock", try_lock)
    monkeypatch.setattr(module, "_fetch", lambda *arguments: fetched.append(lock.exists()))
    fetch(target, serve(whole))
    assert fetched == [True]


def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_variable(serve, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    said = refusal(tmp_path / "file" / "below" / "file.gz", serve(whole))
    assert said.startswith(f"{tmp_path / 'file' / 'below'}: Not a directory; expected a folder to write file.gz to")
    assert "VITNP_DATA" in said


def test_a_full_disk_is_an_error_that_names_the_variable(serve, target, monkeypatch):
    import errno

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = refusal(target, serve(whole))
    assert re.match(f"{target.parent}: No space left on device; expected a folder .* VITNP_DATA", said)


# what it shows


def test_a_pipe_gets_one_line_and_no_bar(serve, target, capsys):
    server = serve(whole)
    fetch(target, server)
    assert capsys.readouterr() == ("", f"downloading {server.url()} (0.3 MB)\n")


def test_a_terminal_gets_a_bar_in_bytes(serve, target, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fetch(target, serve(whole))
    shown = capsys.readouterr().err
    assert re.search(r"file.gz: 100%.* 300k/300k \[.*B/s\]", shown)
    assert "downloading" not in shown
