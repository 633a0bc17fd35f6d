import os
import signal
import stat

import pytest
from click.testing import CliRunner

import exporter.cli.command
from runtime_py.adb.connection import connect, push_bundle, size_megabytes
from runtime_py.bundle.bundle import Bundle
from runtime_py.errors import RunError
from runtime_py.terminal.signals import Interrupted
from tests.runtime_py.bundles import write_fake_bundle


@pytest.fixture
def bundle(tmp_path):
    return write_fake_bundle(tmp_path / "my bundle")


def pushes(adb):
    return [call for call in adb.asked if "push" in call]


def test_a_bundle_arrives_whole_and_nothing_is_left_beside_it(adb, bundle):
    heard = []
    folder = push_bundle(connect(None), bundle, heard.append)
    assert str(folder) == "/data/local/tmp/gemma-export/my_bundle"
    arrived = adb.folder() / "my_bundle"
    assert {path.name: path.read_bytes() for path in arrived.iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()
    }
    assert [path.name for path in adb.folder().iterdir()] == ["my_bundle"]
    assert heard
    assert max(heard) <= size_megabytes(bundle)


def test_every_app_may_list_the_folder_and_read_the_bundle(adb, bundle):
    mask = os.umask(0o077)  # the fake device's shell has it too
    try:
        push_bundle(connect(None), bundle)
    finally:
        os.umask(mask)
    pushed = [adb.folder(), adb.folder() / "my_bundle"]
    assert [stat.S_IMODE(path.stat().st_mode) & 0o055 for path in pushed] == [0o055] * 2
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in pushed[1].iterdir())


def test_what_is_there_already_is_not_sent_again(adb, bundle):
    push_bundle(connect(None), bundle)
    before = len(pushes(adb))
    push_bundle(connect(None), bundle)
    assert len(pushes(adb)) == before
    (adb.folder() / "my_bundle" / "tokenizer.json").write_bytes(b"altered")
    push_bundle(connect(None), bundle)
    assert len(pushes(adb)) == 2 * before


def test_a_failed_push_leaves_the_old_bundle(adb, bundle):
    push_bundle(connect(None), bundle)
    old = (adb.folder() / "my_bundle" / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(old + b"\n")
    adb.connect({"emulator-5554": "device"}, push_fails=True)
    with pytest.raises(RunError, match=r"was not sent: adb: error: .*No space left on device"):
        push_bundle(connect(None), bundle)
    assert (adb.folder() / "my_bundle" / "manifest.json").read_bytes() == old
    assert os.listdir(adb.folder()) == ["my_bundle"]


def test_an_interrupted_push_leaves_the_old_bundle(adb, bundle, monkeypatch):
    push_bundle(connect(None), bundle)
    old = (adb.folder() / "my_bundle" / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(old + b"\n")

    def interrupt(_megabytes):
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("runtime_py.adb.connection._runs_on", lambda _: True)
    with pytest.raises(Interrupted):
        push_bundle(connect(None), bundle, interrupt)
    assert (adb.folder() / "my_bundle" / "manifest.json").read_bytes() == old
    assert os.listdir(adb.folder()) == ["my_bundle"]


def test_what_a_push_that_died_left_takes_no_room(adb, bundle, monkeypatch):
    left = adb.folder() / "my_bundle.part"
    left.mkdir(parents=True)
    there = []
    monkeypatch.setattr(
        "runtime_py.adb.connection.Device.free_bytes",
        lambda _: there.append(left.exists()) or 1 << 40,
    )
    push_bundle(connect(None), bundle)
    assert there == [False]


def test_a_file_that_arrives_altered_is_noticed(adb, bundle):
    adb.connect({"emulator-5554": "device"}, alters="tokenizer.json")
    with pytest.raises(RunError, match=r"tokenizer\.json arrived altered"):
        push_bundle(connect(None), bundle)
    assert not (adb.folder() / "my_bundle").exists()


def test_a_bundle_that_does_not_fit_is_refused_before_anything_is_sent(adb, bundle):
    adb.connect({"emulator-5554": "device"}, free_kib=1000)
    with pytest.raises(RunError, match=r"needs \d+ MB in /data/local/tmp/gemma-export, 1 MB are"):
        push_bundle(connect(None), bundle)
    assert not pushes(adb)


@pytest.mark.parametrize(
    ("devices", "serial", "said"),
    [
        ({}, None, "no Android device is connected"),
        (
            {"a": "device", "b": "device"},
            None,
            r"2 devices are connected \(a, b\); choose --serial",
        ),
        ({"a": "unauthorized"}, None, "device a has not allowed USB debugging"),
        ({"a": "offline"}, None, "device a is offline"),
        ({"a": "no permissions (missing udev rules)"}, None, "device a may not be opened"),
        ({"a": "recovery"}, "a", "device a is in state 'recovery'"),
        ({"a": "device"}, "b", "no device b; connected: a"),
        ({}, "b", "no device b; connected: none"),
    ],
)
def test_a_device_that_cannot_be_used_is_said_in_one_line(adb, devices, serial, said):
    adb.connect(devices)
    with pytest.raises(RunError, match=said) as caught:
        connect(serial)
    assert "\n" not in str(caught.value)


def test_one_of_several_can_be_chosen(adb, bundle):
    adb.connect({"a": "device", "b": "unauthorized"})
    assert push_bundle(connect("a"), bundle)
    assert (adb.folder("a") / "my_bundle").is_dir()


def test_without_adb_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="adb is not on the PATH; install"):
        connect(None)


@pytest.mark.usefixtures("adb")
def test_the_model_is_the_makers_name():
    assert connect(None).model() == "Pixel 10 Pro"


def test_an_export_that_could_not_be_sent_is_refused_before_the_work(adb, tmp_path):
    adb.connect({})
    output = tmp_path / "out"
    command = ["--target", "android", "--size", "tiny", "--push", "--output", str(output)]
    shown = CliRunner().invoke(exporter.cli.command.main, command)
    assert shown.exit_code == 1
    assert "error: no Android device is connected" in shown.stderr
    assert not output.exists()


def test_an_export_is_sent_when_it_is_made(adb, tmp_path, monkeypatch):
    def export(config, _progress):
        return Bundle.open(write_fake_bundle(config.output)).manifest

    monkeypatch.setattr("exporter.pipeline.export", export)
    output = tmp_path / "out"
    command = ["--target", "android", "--size", "tiny", "--push", "--output", str(output)]
    shown = CliRunner().invoke(exporter.cli.command.main, [*command, "--no-check"])
    assert shown.exit_code == 0, shown.output
    assert "On Pixel 10 Pro: /data/local/tmp/gemma-export/out" in shown.stdout
    assert (adb.folder() / "out" / "manifest.json").is_file()
