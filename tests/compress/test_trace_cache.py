import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from networks import settled
from torch import nn

from autocomp.compress import trace as tracing
from autocomp.compress import trace_cache
from autocomp.compress.plain_form import plain_form
from autocomp.compress.trace import PROGRAM_FILE, TEMPLATE_FILE, trace
from autocomp.compress.trace_cache import TraceCache, digest_of


class Chain(nn.Module):
    slope = 0.1

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second, self.offset = nn.Linear(6, width), nn.Linear(width, 4), 1.0

    def forward(self, x):
        return self.second(nn.functional.leaky_relu(self.first(x), self.slope)) + self.offset


def rows(n: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(3)).to(dtype)


def digest(network: nn.Module, x: torch.Tensor | None = None) -> str:
    x = rows() if x is None else x
    return digest_of(plain_form(network, x), x)


# ---- the digest ----------------------------------------------------------------------------------------------------
def test_the_same_network_has_the_same_digest_whatever_the_values_of_its_example():
    assert digest(settled(Chain())) == digest(settled(Chain()), rows(3) * 2)
    assert digest(settled(Chain())) == digest(settled(Chain()).train())


def changed_weight(network):
    with torch.no_grad():
        network.second.weight[0, 0] += 1e-6


def changed_sign_of_zero(network):
    with torch.no_grad():
        network.second.bias.zero_()
        network.second.bias[0] = -0.0


def changed_number(network):
    network.offset = 1.5


def changed_attribute_of_the_class(network):
    network.slope = 0.2


def changed_forward(network):
    class Other(Chain):
        def forward(self, x):
            return self.second(nn.functional.leaky_relu(self.first(x), self.slope)) + (x.shape[0] > 100) + 1.0

    network.__class__ = Other


def changed_operator(network):
    class Other(Chain):
        def forward(self, x):
            return self.second(nn.functional.elu(self.first(x), self.slope)) + self.offset

    network.__class__ = Other


def changed_name(network):
    network.renamed = network.first
    network.first = nn.Identity()

    class Other(Chain):
        def forward(self, x):
            return self.second(nn.functional.leaky_relu(self.renamed(x), self.slope)) + self.offset

    network.__class__ = Other


def changed_hook(network):
    network.first.register_forward_hook(lambda module, inputs, output: output * 2)


def shared_weight(network):
    network.second = nn.Linear(8, 8)
    with torch.no_grad():
        network.second.weight.copy_(torch.eye(8))


@pytest.mark.parametrize(
    "change",
    [
        changed_weight, changed_number, changed_attribute_of_the_class, changed_forward, changed_operator,
        changed_name, changed_hook, shared_weight,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_a_changed_network_has_another_digest(change):
    network = settled(Chain())
    before = digest(network)
    change(network)
    assert digest(network) != before


def test_negative_zero_is_another_value():
    zero, negative = settled(Chain()), settled(Chain())
    with torch.no_grad():
        zero.second.bias.zero_()
    changed_sign_of_zero(negative)
    assert digest(zero) != digest(negative)


class Tied(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_a_weight_that_is_shared_is_another_network_than_one_that_is_copied():
    tied, apart = settled(Tied(True)), settled(Tied(False))
    apart.load_state_dict(tied.state_dict())
    assert digest(tied) != digest(apart)


def test_the_size_of_examples_and_the_batch_in_a_shape_are_in_the_digest():
    class Means(nn.Module):
        def forward(self, x):
            return x.mean(1, keepdim=True)

    class Fixed(nn.Module):
        def __init__(self, size) -> None:
            super().__init__()
            self.size = size

        def forward(self, x):
            return x.reshape(self.size or x.shape[0], 6)

    assert digest(Means(), rows()) != digest(Means(), rows()[:, :5])
    x = rows()
    assert digest_of(plain_form(Fixed(None), x), x)
    with pytest.raises(RuntimeError):  # no digest of a network that takes one batch size alone
        digest_of(plain_form(Fixed(2), x), x)


def test_other_versions_of_what_traces_are_in_the_digest(monkeypatch):
    before = digest(settled(Chain()))
    monkeypatch.setattr(trace_cache, "_versions", lambda: ("torch 1.0",))
    assert digest(settled(Chain())) != before


# ---- entries -------------------------------------------------------------------------------------------------------
@pytest.fixture
def files(tmp_path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    (place / "a").write_bytes(b"first")
    (place / "b").write_bytes(b"second")
    return place


def cache_at(tmp_path: Path) -> TraceCache:
    return TraceCache(tmp_path / "cache" / "traced")


def fetched(cache: TraceCache, digest: str, tmp_path: Path) -> dict[str, bytes] | None:
    place = tmp_path / "fetched"
    place.mkdir(exist_ok=True)
    return {p.name: p.read_bytes() for p in place.iterdir()} if cache.fetch(digest, place) else None


def test_what_is_kept_is_fetched_and_nobody_else_can_write_it(files, tmp_path):
    cache = cache_at(tmp_path)
    assert fetched(cache, "d1", tmp_path) is None
    cache.keep("d1", files, ("a", "b"))
    cache.keep("d1", files, ("a", "b"))  # another process was first
    assert fetched(cache, "d1", tmp_path) == {"a": b"first", "b": b"second"}
    assert fetched(cache, "d2", tmp_path) is None
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert [path.name for path in cache.folder.iterdir()] == ["d1"]


def truncated(entry):
    (entry / "b").write_bytes(b"sec")


def another(entry):
    (entry / "a").write_bytes(b"other")


def missing(entry):
    (entry / "a").unlink()


def without_manifest(entry):
    (entry / "manifest.json").unlink()


def foreign_manifest(entry):
    (entry / "manifest.json").write_text("[1, 2]")


def of_another_kind(entry):
    (entry / "manifest.json").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    "damage", [truncated, another, missing, without_manifest, foreign_manifest, of_another_kind],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
def test_a_damaged_entry_is_removed_and_can_be_made_anew(damage, files, tmp_path):
    cache = cache_at(tmp_path)
    cache.keep("d1", files, ("a", "b"))
    damage(cache.folder / "d1")
    assert fetched(cache, "d1", tmp_path) is None
    assert not (cache.folder / "d1").exists()
    cache.keep("d1", files, ("a", "b"))
    assert fetched(cache, "d1", tmp_path) == {"a": b"first", "b": b"second"}


def test_a_manifest_that_points_elsewhere_reads_nothing_there(files, tmp_path):
    cache = cache_at(tmp_path)
    cache.keep("d1", files, ("a",))
    (tmp_path / "secret").write_bytes(b"secret")
    (cache.folder / "d1" / "manifest.json").write_text(json.dumps({"../../../secret": "0" * 64}))
    assert fetched(cache, "d1", tmp_path) is None


def test_a_folder_that_others_could_write_is_emptied_and_closed(files, tmp_path):
    cache = cache_at(tmp_path)
    cache.keep("d1", files, ("a",))
    cache.folder.chmod(0o777)
    assert fetched(cache, "d1", tmp_path) is None
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_a_folder_that_is_a_link_or_a_file_is_not_used(files, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        cache = TraceCache(tmp_path / name)
        cache.keep("d1", files, ("a",))
        assert fetched(cache, "d1", tmp_path) is None
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_cache_keeps_what_was_used_last(files, tmp_path, monkeypatch):
    monkeypatch.setattr(trace_cache, "MOST_ENTRIES", 3)
    cache = cache_at(tmp_path)
    for age, name in enumerate("abc"):
        cache.keep(name, files, ("a",))
        os.utime(cache.folder / name, (1000 + age, 1000 + age))
    assert fetched(cache, "a", tmp_path)  # used: it is the newest now
    cache.keep("d", files, ("a",))
    assert {path.name for path in cache.folder.iterdir()} == {"a", "c", "d"}
    monkeypatch.setattr(trace_cache, "MOST_BYTES", 8)
    cache.keep("e", files, ("a", "b"))  # larger than the cache
    assert {path.name for path in cache.folder.iterdir()} == {"a", "c", "d"}


def test_what_a_killed_process_left_is_removed_in_time(files, tmp_path):
    cache = cache_at(tmp_path)
    cache.keep("a", files, ("a",))
    for name, age in (("old", 1000), ("new", None)):
        path = cache.folder / f".partial-{name}"
        path.mkdir()
        if age:
            os.utime(path, (age, age))
    cache.keep("b", files, ("a",))
    assert {path.name for path in cache.folder.iterdir()} == {"a", "b", ".partial-new"}


# ---- tracing from it -----------------------------------------------------------------------------------------------
@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """One entry for each time that a network was really traced."""
    calls, write = [], tracing._write

    def counting(*arguments):
        calls.append(1)
        write(*arguments)

    monkeypatch.setattr(tracing, "_write", counting)
    return calls


def test_a_network_is_traced_once(counted, tmp_path):
    cache, x = cache_at(tmp_path), rows()
    first = trace(settled(Chain()), x, "first", tmp_path / "one", cache)
    again = trace(settled(Chain()), x, "second", tmp_path / "two", cache)
    assert len(counted) == 1
    assert (first.spec.name, again.spec.name) == ("first", "second")
    assert first.spec.layers == again.spec.layers and first.template == again.template
    for name in (PROGRAM_FILE, TEMPLATE_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    # An entry of another network under this one's name is noticed by its answers, whatever its sums say.
    other = settled(Chain(), seed=1)
    trace(other, x, "other", None, cache)
    assert len(counted) == 2
    wrong, right = cache.folder / digest(other), cache.folder / digest(settled(Chain()))
    for file in wrong.iterdir():
        file.write_bytes((right / file.name).read_bytes())
    made = trace(other, x, "other", None, cache)
    assert len(counted) == 3
    with torch.no_grad():
        torch.testing.assert_close(made.graph(x), other(x))
    # What cannot be loaded is made anew too.
    (wrong / PROGRAM_FILE).write_bytes(b"nothing")
    sums = json.loads((wrong / "manifest.json").read_text())
    sums[PROGRAM_FILE] = hashlib.sha256(b"nothing").hexdigest()
    (wrong / "manifest.json").write_text(json.dumps(sums))
    trace(other, x, "other", None, cache)
    assert len(counted) == 4
    trace(other, x, "other", None, cache)
    assert len(counted) == 4
