# SPDX-License-Identifier: Apache-2.0
"""Compiling in a child, pinning, reuse, replacement: what is found after success, failure and a crash half way."""

import os
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from kmesh_bpf.core.state import Program
from kmesh_bpf.errors import ConfigError, LoadError, UnsupportedError
from kmesh_bpf.kernel import bpf, programs
from kmesh_bpf.kernel.linux import LinuxKernel
from kmesh_bpf.kernel.map_folders import NAMES
from kmesh_bpf.kernel.maps import Maps
from kmesh_bpf.kernel.pin_root import RUNNING, claim, need_bpffs
from kmesh_bpf.kernel.programs import RING, SAMPLING, Settings, ensure_loaded, remove_all, remove_stale, source_folder

POD = ip_address("10.244.1.1")


@pytest.fixture
def never_compiles(monkeypatch):
    monkeypatch.setattr(programs, "_compile", lambda *_: pytest.fail("compiled"))


@pytest.fixture
def sources(tmp_path):
    """A copy of the C sources, to be spoilt."""
    shutil.copytree(source_folder(), tmp_path / "bpf", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "bpf"


def spoil(sources, text):
    with (sources / "tc_leak_guard.c").open("a") as file:
        file.write(text)


def pins(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_the_same_sources_and_settings_compile_nothing(strict, never_compiles):
    assert not ensure_loaded(strict.root, strict.settings).compiled


def test_programs_and_maps_are_pinned_under_the_names_of_the_contract_and_nothing_else(root):
    built = ensure_loaded(root, Settings())
    assert built.compiled
    pinned = {*(program.value for program in Program), RING, SAMPLING}
    assert {path.name for path in built.programs.iterdir()} == pinned
    assert [path.name for path in (root / "programs").iterdir()] == [built.programs.name]
    assert sorted(path.name for path in built.maps.iterdir()) == sorted(NAMES)
    assert len({bpf.program_id(built.path(program)) for program in Program}) == len(Program)


def test_other_settings_make_another_build_over_the_same_maps_and_the_old_one_stays_until_told(root):
    first = ensure_loaded(root, Settings())
    second = ensure_loaded(root, Settings(strict=False))
    third = ensure_loaded(root, Settings(node_mark_mask=0xFFF0_0000))
    assert second.compiled
    assert first.maps == second.maps == third.maps
    assert len({first.programs, second.programs, third.programs}) == 3
    assert first.path(Program.LEAK_GUARD).exists()
    remove_stale(root, second)
    assert [path.name for path in (root / "programs").iterdir()] == [second.programs.name]
    assert second.path(Program.LEAK_GUARD).exists()


def test_changed_sources_make_another_build(root, sources):
    first = ensure_loaded(root, Settings(), sources)
    spoil(sources, "/* another word */\n")
    assert ensure_loaded(root, Settings(), sources).programs != first.programs


def test_a_build_of_which_a_pin_is_gone_is_made_anew(root):
    built = ensure_loaded(root, Settings())
    built.path(Program.MARK_DECRYPT).unlink()
    assert ensure_loaded(root, Settings()).compiled
    (built.maps / "kmesh_pods6").unlink()
    again = ensure_loaded(root, Settings())
    assert again.compiled
    Maps(again.maps).close()


def test_a_compiler_killed_half_way_leaves_nothing_that_looks_complete(root, strict, monkeypatch):
    """It has pinned one of the programs, and then the parent dies too: its clean-up does not run."""

    def half(sources, flags, unfinished):
        with bpf.opened(strict.build.path(Program.MARK_ENCRYPT)) as fd:
            bpf.pin(fd, unfinished / Program.MARK_ENCRYPT.value)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(programs, "_compile", half)
        patch.setattr(programs, "_remove", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            ensure_loaded(root, Settings())
    assert [path.name for path in root.glob("programs/*/*")] == [Program.MARK_ENCRYPT.value]
    built = ensure_loaded(root, Settings())
    assert built.compiled
    assert [path.name for path in (root / "programs").iterdir()] == [built.programs.name]


def test_two_that_start_at_once_compile_once(root):
    with ThreadPoolExecutor() as pool:
        built = list(pool.map(lambda _: ensure_loaded(root, Settings()), range(3)))
    assert sorted(one.compiled for one in built) == [False, False, True]
    assert len({one.programs for one in built}) == 1


def test_a_broken_source_is_an_error_with_the_compiler_s_words_and_leaves_nothing_complete(root, sources):
    spoil(sources, "int broken(void) { return nothing; }\n")
    with pytest.raises(LoadError, match=r"BCC: .*tc_leak_guard\.c:\d+:\d+: error: .*nothing") as caught:
        ensure_loaded(root, Settings(), sources)
    assert "error:" in caught.value.log
    assert list(root.glob("programs/*")) == []
    assert ensure_loaded(root, Settings()).compiled


def test_a_program_that_the_verifier_refuses_is_an_error_with_its_whole_log(root, sources):
    guard = sources / "tc_leak_guard.c"
    guard.write_text(
        '#include "packet.h"\nint tc_leak_guard(struct __sk_buff *skb) { return *(int *)(long)skb->len; }\n'
    )
    with pytest.raises(LoadError, match=r"Failed to load BPF program .*tc_leak_guard.*invalid mem access") as caught:
        ensure_loaded(root, Settings(), sources)
    assert "R1" in caught.value.log
    assert list(root.glob("programs/*")) == []


def test_a_compiler_that_dies_or_cannot_be_started_is_a_load_error(root, monkeypatch):
    monkeypatch.setattr(programs.sys, "executable", "/bin/false")
    with pytest.raises(LoadError, match="died with status 1"):
        ensure_loaded(root, Settings())
    monkeypatch.setattr(programs.sys, "executable", "/nowhere/python")
    with pytest.raises(LoadError, match="No such file"):
        ensure_loaded(root, Settings())


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("sys.modules['bcc'] = None", "BCC for Python is not available: install Debian's python3-bpfcc"),
        ("bcc_loader.HEADERS = bcc_loader.Path('/nowhere')", "install Debian's linux-libc-dev"),
    ],
)
def test_what_is_not_installed_is_named_with_the_way_out(root, tmp_path, monkeypatch, broken, words):
    """The child is replaced by one in which something is missing, as on a machine without it."""
    lines = ["import sys", f"sys.path.insert(0, {str(programs.LOADER.parent)!r})"]
    lines += ["import bcc_loader", "sys.path.pop(0)", broken, "bcc_loader.main()"]
    script = tmp_path / "child.py"
    script.write_text("\n".join(lines))
    monkeypatch.setattr(programs, "LOADER", script)
    with pytest.raises(UnsupportedError, match=words):
        ensure_loaded(root, Settings())


def test_a_pin_root_outside_of_bpffs_is_refused_and_not_left_behind(tmp_path):
    with pytest.raises(UnsupportedError, match="mount -t bpf"):
        ensure_loaded(tmp_path / "no" / "bpffs", Settings())
    assert not (tmp_path / "no" / "bpffs").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UnsupportedError, match="Not a directory"):
        ensure_loaded(tmp_path / "file" / "below", Settings())


def test_remove_all_leaves_the_pins_of_others_alone(root):
    built = ensure_loaded(root, Settings())
    (root / "programs" / "theirs").mkdir()
    with bpf.opened(built.path(Program.LEAK_GUARD)) as fd:
        bpf.pin(fd, root / "programs" / "theirs" / "program")
        bpf.pin(fd, root / "mine_too")
    remove_all(root)
    assert pins(root) == ["mine_too", "programs/theirs/program"]


def test_remove_all_leaves_no_folder_where_nothing_else_is(root):
    ensure_loaded(root, Settings())
    remove_all(root)
    assert not root.exists()


def test_the_child_needs_nothing_of_the_library():
    command = [programs.sys.executable, "-P", "-X", "importtime", programs.LOADER]
    job = '{"kernel_source": "/dev/null/no", "text": "", "cflags": [], "programs": {}}'
    child = subprocess.run(command, input=job, capture_output=True, text=True, check=True)
    assert "error" in child.stdout
    assert not any(name in child.stderr for name in ("kmesh_bpf", "pyroute2", "cffi"))


def test_a_start_that_fails_leaves_nothing_behind(root, sources):
    spoil(sources, "int broken(void) { return nothing; }\n")
    with pytest.raises(LoadError), claim(root):
        ensure_loaded(root, Settings(), sources)
    assert not root.exists()


def test_what_was_pinned_stays_when_its_daemon_goes(root):
    with claim(root):
        built = ensure_loaded(root, Settings())
    assert built.path(Program.LEAK_GUARD).exists()
    assert (root / RUNNING).is_dir()


@pytest.mark.parametrize("where", ["itself", "above", "link"])
@pytest.mark.parametrize("act", ["claim", "load", "open", "uninstall"])
def test_a_pin_root_that_somebody_else_owns_is_refused_and_left_as_it_is(root, act, where, tmp_path):
    """Everybody may make a folder in bpffs, and a link there to what root should not touch."""
    pin_root = root / "below" if where == "above" else root
    if where == "link":
        (tmp_path / "maps-1-1").mkdir()
        (tmp_path / "maps-1-1" / "precious").touch()
        root.symlink_to(tmp_path)
        os.chown(root, 65534, 65534, follow_symlinks=False)
    else:
        pin_root.mkdir(parents=True)
        os.chown(root, 65534, 65534)
    acts = {
        "claim": lambda: claim(pin_root).__enter__(),
        "load": lambda: ensure_loaded(pin_root, Settings()),
        "open": lambda: LinuxKernel(pin_root, Settings()),
        "uninstall": lambda: LinuxKernel(pin_root, Settings(), load=False),
    }
    try:
        with pytest.raises(ConfigError, match=rf"the pin root {root} belongs to nobody \(uid 65534\), not to root"):
            acts[act]()
        assert where == "link" or not any(path for path in pin_root.iterdir())
        assert where != "link" or (tmp_path / "maps-1-1" / "precious").exists()
    finally:
        if where == "link":
            root.unlink()


def test_a_pin_root_that_everybody_may_write_into_is_refused(root):
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(ConfigError, match=f"into the pin root {root} everybody may write: remove it"):
        ensure_loaded(root, Settings())


def test_a_pin_root_is_made_for_nobody_else_to_write_into_whatever_the_umask(root):
    before = os.umask(0)
    try:
        need_bpffs(root / "below")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (root, root / "below")] == [0o755, 0o755]


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a\0b", "\udcff"])
def test_a_pin_root_whose_name_would_break_the_source_is_refused(root, name):
    with pytest.raises(ConfigError, match="holds characters that no path of a map may have"):
        LinuxKernel(root / name, Settings())
    assert not root.exists()
