"""What `--distributed` refuses before it waits for other processes."""

import socket

import pytest

from cifar_jax.training import distributed
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


@pytest.mark.parametrize(
    ("variable", "value", "host"),
    [
        ("JAX_COORDINATOR_ADDRESS", "nowhere.invalid:1234", "nowhere.invalid"),
        ("SLURM_STEP_NODELIST", "nowhere.invalid,node2", "nowhere.invalid"),
        ("SLURM_STEP_NODELIST", "nowhere-[007,009-015],node2", "nowhere-007"),
        ("SLURM_STEP_NODELIST", "nowhere-[07-15]", "nowhere-07"),
        ("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://nowhere,10.0.0.1:34911", "nowhere"),
        ("OMPI_MCA_orte_hnp_uri", "1314521088.0;tcp6://[fe80::zz,2620::2]:43370", "fe80::zz"),
    ],
)
def test_a_host_that_the_environment_names_needs_an_address(
    tmp_path, monkeypatch, variable, value, host
):
    """JAX would try for five minutes, without a word."""
    for name in ("JAX_COORDINATOR_ADDRESS", *distributed._HOSTS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    find = socket.getaddrinfo

    def getaddrinfo(name, port):
        if name == host:
            raise socket.gaierror(-2, "Name or service not known")
        return find(name, port)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(distributed.devices, "configure_jax", lambda *_: pytest.fail("too late"))
    flag = program.write_config(tmp_path / "short.py")
    code, _, err = program.run_here(flag, "--distributed", "--num_processes=2", "--process_id=1")
    words = f"there is no address for {host}, of {variable}: check it, or give the host's number"
    assert (code, err) == (2, f"error: --distributed: {words}\n")


def test_an_address_in_the_environment_is_a_host_and_a_port(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost")
    flag = program.write_config(tmp_path / "short.py")
    code, _, err = program.run_here(flag, "--distributed", "--num_processes=2", "--process_id=1")
    words = "JAX_COORDINATOR_ADDRESS=localhost is not HOST:PORT, such as 10.0.0.1:1234"
    assert (code, err) == (2, f"error: {words}\n")
