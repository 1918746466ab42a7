"""What `--distributed` refuses before it waits for other processes."""

import socket

import pytest

from tests import program


@pytest.mark.parametrize("address", ["here", "here:", ":1234", "here:x", "here:0", "here:65536"])
def test_a_coordinator_is_a_host_and_a_port(tmp_path, address):
    flag = program.write_config(tmp_path / "short.py")
    code, _, err = program.run_here(flag, "--distributed", f"--coordinator={address}")
    words = "is not HOST:PORT, such as 10.0.0.1:1234"
    assert (code, err) == (2, f"error: --coordinator={address} {words}\n")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("there", "there is no address for there, of --coordinator: check it, or give the host's"),
        (socket.gethostname(), f"there is no address for {socket.gethostname()}, this machine's"),
    ],
)
def test_a_host_name_without_an_address_is_named(tmp_path, monkeypatch, missing, words):
    def getaddrinfo(name, _):
        if name == missing:
            raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    flag = program.write_config(tmp_path / "short.py")
    code, _, err = program.run_here(flag, "--distributed", "--coordinator=there:1234")
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith(f"error: --distributed: {words}")
