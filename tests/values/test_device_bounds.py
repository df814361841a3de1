"""Bounds of several devices in one option, and which devices `--hw` names."""

import pytest

from autocomp.budget import Budget, parse_bytes, parse_milliseconds, parse_per_device
from autocomp.errors import UserError
from autocomp.settings import SearchSettings, split_devices

DEVICES = ("mobile_arm", "host_cpu", "raspberry_pi_4")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4MB", dict.fromkeys(DEVICES, 4_000_000)),
        ("mobile_arm=4MB", {"mobile_arm": 4_000_000}),
        ("mobile_arm=4MB,host_cpu=500kB", {"mobile_arm": 4_000_000, "host_cpu": 500_000}),
        ("host_cpu = 500 kB , 1MB", {"mobile_arm": 1_000_000, "host_cpu": 500_000, "raspberry_pi_4": 1_000_000}),
        ("1MB,host_cpu=500kB", {"mobile_arm": 1_000_000, "host_cpu": 500_000, "raspberry_pi_4": 1_000_000}),
    ],
)
def test_bounds_by_name_and_for_the_rest(text, expected):
    assert parse_per_device(text, "--budget", DEVICES, parse_bytes) == expected


def test_any_kind_of_bound():
    found = parse_per_device("mobile_arm=500us,host_cpu=2ms", "--max-latency", DEVICES, parse_milliseconds)
    assert found == {"mobile_arm": 0.5, "host_cpu": 2.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mobile_ram=4MB", "--budget: mobile_ram is not searched for; expected one of mobile_arm, host_cpu, raspb"),
        ("=4MB", "--budget: '=4MB' is not searched for"),
        ("mobile_arm=4MB,mobile_arm=5MB", "expected one bound for mobile_arm, got two in"),
        ("4MB,5MB,host_cpu=1MB", "expected one bound without a device's name, got two in"),
        ("mobile_arm=lots", "--budget: expected a number with a unit such as 4MB, 500kB or 4MiB, got 'lots'"),
        ("mobile_arm=", "--budget: expected a number with a unit such as 4MB, 500kB or 4MiB, got ''"),
        ("mobile_arm=4MB,", "--budget: expected a number with a unit such as 4MB, 500kB or 4MiB, got ''"),
        ("4MB,5MB", "--budget: expected a number with a unit such as 4MB, 500kB or 4MiB, got '4MB,5MB'"),
    ],
)
def test_what_is_wrong_is_said(text, expected):
    with pytest.raises(UserError) as error:
        parse_per_device(text, "--budget", DEVICES, parse_bytes)
    assert expected in str(error.value)


def test_devices_in_their_order():
    assert split_devices("mobile_arm") == ("mobile_arm",)
    assert split_devices("host_cpu, mobile_arm") == ("host_cpu", "mobile_arm")


def test_a_file_may_have_a_comma_in_its_name(tmp_path):
    path = tmp_path / "mine,or yours.yaml"
    path.touch()
    assert split_devices(str(path)) == (str(path),)


@pytest.mark.parametrize(
    ("hw", "expected"),
    [
        ("mobile_arm,mobile_arm", "expected different devices, got mobile_arm twice"),
        ("mobile_arm,", "expected names with a comma between them such as mobile_arm,host_cpu, got 'mobile_arm,'"),
        (",", "expected names with a comma between them"),
    ],
)
def test_devices_that_cannot_be(hw, expected):
    with pytest.raises(UserError, match=expected):
        split_devices(hw)


def test_settings_come_back_from_a_run_as_they_were():
    second = Budget(500_000, 2.0)
    settings = SearchSettings("mobile_arm,host_cpu", budget=Budget(4_000_000), device_budgets={"host_cpu": second})
    again = SearchSettings.from_dict(settings.to_dict(), "run.yaml")
    assert again == settings
    assert again.budget_of("host_cpu") == second
    assert again.budget_of("mobile_arm") == Budget(4_000_000)


def test_settings_of_a_run_that_knew_no_second_device():
    values = SearchSettings("mobile_arm").to_dict()
    del values["device_budgets"]
    assert SearchSettings.from_dict(values, "run.yaml") == SearchSettings("mobile_arm")
