"""The archive reads whatever lies in a run's folder, finds runs by what people type, and tells noise from change."""

import json
import os

import pytest

from mlops_core.archive import UnknownName, comparable, compare_runs, differences, find_run, judge, list_runs, read_run, write_whole

GOOD = {
    "status": "succeeded", "run_id": "x", "started": "2026", "finished": "2026", "timings": {"seconds": 3},
    "headline": [{"name": "roc_auc", "value": 0.780, "low": 0.775, "high": 0.785, "greater_is_better": True}],
    "results": {"roc_auc": 0.780, "chosen": "gam", "by_sex": {"male": 0.77}},
    "candidates": [{"candidate": "gam", "ks": 0.40, "ks_se": 0.01}, {"candidate": "xgboost", "ks": 0.44, "ks_se": 0.01}],
    "data": {"name": "credit", "fingerprint": "aa"}, "parameters": {"seed": 0, "rate": 0.5}, "code_fingerprint": "c0de",
    "environment": {"python": "3.11.7", "numpy": "2.4.1"},
}  # fmt: skip


def keep(reports, run_id, content, case="credit"):
    folder = reports / case / run_id
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture
def reports(tmp_path):
    keep(tmp_path, "20260301T090000Z-aaaaaa", GOOD)
    keep(tmp_path, "20260302T090000Z-bbbbbb", GOOD | {"parameters": {"seed": 3, "rate": 0.5}})
    keep(tmp_path, "20260303T090000Z-cccccc", {"status": "failed", "message": "no"})
    keep(tmp_path, "20260304T090000Z-dddddd", GOOD, case="forecast")
    return tmp_path


BROKEN = {
    "nothing": (None, "unfinished"), "running": ('{"status": "running"}', "unfinished"), "empty": ("", "unreadable"),
    "half": ('{"status": "succ', "unreadable"), "a list": ("[]", "unreadable"), "a number": ("3", "unreadable"),
    "no status": ("{}", "unreadable"), "odd status": ('{"status": ["succeeded"]}', "unreadable"), "deep": ("[" * 100_000, "unreadable"),
}  # fmt: skip


@pytest.mark.parametrize("content,status", BROKEN.values(), ids=BROKEN)
def test_a_broken_run_has_a_status_and_raises_nothing(tmp_path, content, status):
    run = read_run(keep(tmp_path, "20260301T090000Z-aaaaaa", content))
    assert (run["status"], run["case"], run["run_id"], run["headline"]) == (status, "credit", "20260301T090000Z-aaaaaa", [])


def test_bytes_that_are_no_text_are_unreadable(tmp_path):
    folder = keep(tmp_path, "20260301T090000Z-aaaaaa", None)
    (folder / "results.json").write_bytes(b"\xff\xfe\x00{")
    assert read_run(folder)["status"] == "unreadable"


@pytest.mark.parametrize("headline", ["text", 3, None, {"name": "x"}, ["x", 3, {"value": 1}]])
def test_a_headline_that_is_none_becomes_empty(tmp_path, headline):
    assert read_run(keep(tmp_path, "20260301T090000Z-aaaaaa", GOOD | {"headline": headline}))["headline"] == []


def test_the_folder_says_which_run_it_is_not_the_file(tmp_path):
    assert read_run(keep(tmp_path, "20260301T090000Z-aaaaaa", GOOD | {"run_id": "another", "case": "other"}))["case"] == "credit"


def test_runs_are_listed_newest_first_and_other_files_are_no_runs(reports):
    (reports / "index.html").write_text("x")
    (reports / "credit" / "notes").mkdir()
    (reports / "credit" / "20260305T090000Z-eeeeee").write_text("a file, no folder")
    assert [run["run_id"][-6:] for run in list_runs(reports)] == ["dddddd", "cccccc", "bbbbbb", "aaaaaa"]
    assert list_runs(reports / "nowhere") == []


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    write_whole(tmp_path / "results.json", "old")

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_whole(tmp_path / "results.json", "new")
    assert (tmp_path / "results.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


NAMES = {
    "20260301T090000Z-aaaaaa": "aaaaaa", "20260302": "bbbbbb", "bbbbbb": "bbbbbb", "latest": "dddddd", "credit/latest": "bbbbbb",
    "credit/previous": "aaaaaa", "forecast/20260304": "dddddd", "credit/aaaaaa": "aaaaaa",
}  # fmt: skip


@pytest.mark.parametrize("name,end", NAMES.items())
def test_a_run_is_found_by_what_people_type(reports, name, end):
    assert find_run(name, reports)["run_id"].endswith(end)


def test_a_run_is_found_by_its_folder_absolute_or_relative(reports, monkeypatch):
    folder = reports / "credit" / "20260301T090000Z-aaaaaa"
    monkeypatch.chdir(folder)
    assert find_run(folder)["run_id"] == find_run(".")["run_id"] == folder.name


IMPOSSIBLE = {
    "2026030": "no single run '2026030'; .*there are: 20260304T090000Z-dddddd", "20260301T090001Z-aaaaab": "mean 20260301T090000Z-aaaaaa",
    "cccccc": "has no numbers: it is failed", "previous": "no run 'previous'", "nothing/latest": "there are: none", "": "no single run ''",
}  # fmt: skip


@pytest.mark.parametrize("name,message", IMPOSSIBLE.items())
def test_a_name_that_means_no_run_or_several_is_refused(reports, name, message):
    with pytest.raises(UnknownName, match=message):
        find_run(name, reports)


def item(value, half=None, **more):
    return {"value": value} | ({} if half is None else {"low": value - half, "high": value + half}) | more


JUDGED = [
    (item(0.780, 0.005), item(0.788, 0.005), "beyond noise"),  # 0.008 > hypot(0.005, 0.005) = 0.0071, though the intervals overlap
    (item(0.780, 0.005), item(0.787, 0.005), "within noise"),  # 0.007 < 0.0071
    (item(0.788, 0.005), item(0.780, 0.005), "beyond noise"),
    (item(0.780, 0.005), item(0.780, 0.001), "same"),
    (item(0.780), item(0.780 + 1e-13), "same"),
    (item(0.780), item(0.781), "moved"),
    (item(0.780, 0.005), item(0.781), "moved"),
    (item("gam"), item("gam"), "same"),
    (item("gam"), item("xgboost"), "moved"),
    (item(None), item(1), "moved"),
    (item(True), item(1), "same"),
    ({}, {}, "same"),
]


@pytest.mark.parametrize("before,after,judgement", JUDGED)
def test_a_change_is_noise_or_not(before, after, judgement):
    assert judge(before, after)[1] == judgement


def test_only_the_ends_that_face_each_other_count():
    before = {"value": 1.0, "low": -9.0, "high": 1.1}
    assert judge(before, {"value": 2.0, "low": 1.9, "high": 99.0})[1] == "beyond noise"
    assert judge(before, {"value": 0.5, "low": -9.0, "high": 0.6})[1] == "within noise"


DIRECTIONS = [(True, 2, "better"), (True, 0, "worse"), (False, 0, "better"), (False, 2, "worse"), (None, 2, ""), (True, 1, "")]


@pytest.mark.parametrize("wanted,after,direction", DIRECTIONS)
def test_better_and_worse_know_the_direction(wanted, after, direction):
    assert judge({"value": 1}, {"value": after, "greater_is_better": wanted})[2] == direction


def test_differences_name_what_differs():
    after = GOOD | {"parameters": {"seed": 3}, "environment": {"python": "3.11.7", "numpy": "2.4.2"}}
    after |= {"data": {"name": "credit", "fingerprint": "bb"}}
    found = differences(GOOD, after).set_index(["kind", "name"])
    assert set(found.index) == {("data", "fingerprint"), ("parameters", "seed"), ("parameters", "rate"), ("environment", "numpy")}
    assert found.loc[("parameters", "seed")].tolist() == [0, 3] and found.loc[("parameters", "rate"), "after"] is None
    assert differences(GOOD, GOOD).empty and differences(GOOD, GOOD | {"code_revision": "only the text"}).empty
    assert differences(GOOD, GOOD | {"code_fingerprint": "other"})["kind"].tolist() == ["code"]
    assert differences({}, {"data": "odd", "parameters": [1]}).shape == (2, 4)


def test_every_number_of_two_runs_is_compared(reports):
    table = [{"candidate": "gam", "ks": 0.41, "ks_se": 0.01}, {"candidate": "xgboost", "ks": 0.50, "ks_se": 0.01}]
    keep(reports, "20260309T090000Z-ffffff", GOOD | {"results": {"roc_auc": 0.780, "chosen": "xgboost", "new": 1}, "candidates": table})
    numbers, reasons = compare_runs("credit/previous", "credit/latest", reports)
    expected = {
        "roc_auc": "same", "chosen": "moved", "new": "moved", "by_sex.male": "moved", "candidates.gam.candidate": "same",
        "candidates.gam.ks": "within noise", "candidates.xgboost.ks": "beyond noise", "candidates.xgboost.candidate": "same",
    }  # fmt: skip
    assert numbers.set_index("name")["judgement"].to_dict() == expected
    assert reasons[["kind", "name", "before", "after"]].values.tolist() == [["parameters", "seed", 3, 0]]


def test_runs_of_two_cases_are_not_compared(reports):
    with pytest.raises(UnknownName, match="is of credit and .* of forecast; compare runs of one case"):
        compare_runs("aaaaaa", "dddddd", reports)


def test_comparable_takes_away_name_and_times_only():
    assert comparable(GOOD) == comparable(GOOD | {"run_id": "y", "started": "2027", "finished": "2028", "timings": {}})
    assert comparable(GOOD) != comparable(GOOD | {"parameters": {"seed": 1}})
