"""Two workers at once, killed workers, trials that break off, races: no trial lost or doubled."""

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from compare_data import make_model
from tune_data import save_images

from sparsight import PruneError
from sparsight.speed.macs import macs
from sparsight.tune.language import tune_language
from sparsight.tune.result import Tuning
from sparsight.tune.search import packed, unpacked
from sparsight.tune.space import vision_space
from sparsight.tune.trials import JOURNAL, OWNER, RETRY, Trials, mend, open_storage
from sparsight.tune.tune import tune

optuna = pytest.importorskip("optuna")

WANTED = 7
PATIENCE = 240
METHODS = ["col_ln", "tome", "random", "resize"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_model(), save_images(tmp_path_factory.mktemp("images"), 64)


def work(given, out, storage=None):
    torch.set_num_threads(1)
    tune(*given, out, speedup=1.3, metric="agreement", methods=METHODS, trials=WANTED, storage=storage, device="cpu", strict=False)


def start(*arguments):
    """A worker of its own process; forked, as importing timm once more takes its time."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def finished(process):
    process.join(PATIENCE)
    assert process.exitcode == 0


def kill_after(process, ready):
    """Kill a worker, without a word, as soon as something is ready."""
    until = time.monotonic() + PATIENCE
    while not ready() and time.monotonic() < until:
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def trials_in(out, storage=None):
    """All trials of the only study."""
    if storage is None and not (out / JOURNAL).exists():
        return []
    kept = open_storage(storage, out)
    return [trial for study in kept.get_all_studies() for trial in kept.get_all_trials(study._study_id)]


def counted(trials):
    return [
        trial
        for trial in trials
        if trial.state.name == "COMPLETE" or (trial.state.name == "PRUNED" and "stopped" in trial.user_attrs)
    ]


def check(trials):
    """Nothing lost, nothing doubled, nothing under way."""
    done = counted(trials)
    assert len(done) == WANTED
    assert len({tuple(trial.user_attrs["recipes"]) for trial in done}) == WANTED
    assert not [trial for trial in trials if trial.state.name == "RUNNING"]
    broken = {trial.number for trial in trials if trial.state.name == "FAIL"}
    again = [trial.user_attrs[RETRY] for trial in trials if RETRY in trial.user_attrs]
    assert sorted(again) == sorted(broken)
    return done


def test_two_workers_one_of_them_killed(given, tmp_path):
    first, second = start(given, tmp_path), start(given, tmp_path)
    kill_after(
        second, lambda: any(t.user_attrs.get(OWNER, "").split("-")[-2] == str(second.pid) for t in counted(trials_in(tmp_path)))
    )
    finished(first)
    done = check(trials_in(tmp_path))
    assert len({trial.user_attrs[OWNER] for trial in done}) == 2
    result = Tuning.load(tmp_path)
    assert sorted(one.trial for one in result.trials) == sorted(trial.number for trial in done)
    assert not list(tmp_path.rglob("*.part"))


def test_killed_and_started_again(given, tmp_path):
    kill_after(start(given, tmp_path), lambda: len(counted(trials_in(tmp_path))) >= 2)
    before = {trial.number: trial.user_attrs["outcomes"] for trial in counted(trials_in(tmp_path))}
    assert 2 <= len(before) < WANTED
    assert not (tmp_path / "recipe.json").exists()
    work(given, tmp_path)
    after = {trial.number: trial.user_attrs["outcomes"] for trial in check(trials_in(tmp_path))}
    assert {number: after[number] for number in before} == before


@pytest.mark.product
def test_two_workers_share_a_data_base(given, tmp_path):
    pytest.importorskip("sqlalchemy")
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    for process in [start(given, tmp_path / name, url) for name in ("one", "two")]:
        finished(process)
    done = counted(trials_in(tmp_path / "one", url))
    assert WANTED <= len(done) <= WANTED + 1
    assert {one.trial for one in Tuning.load(tmp_path / "one").trials} <= {trial.number for trial in done}


# ---- in this process --------------------------------------------------------------------------------------------------


def shared(out: Path, key="key"):
    return Trials(open_storage(None, out), key, out, 0)


def test_what_a_dead_worker_left_is_begun_again_and_a_living_ones_is_not(tmp_path):
    mine, other = shared(tmp_path), shared(tmp_path)
    trial = mine.ask(3)
    value = trial.suggest_float("x", 0, 1)
    assert other.ask(1) is None  # that one is under way
    assert other.ask(2).number == 1
    mine.alive.release()  # as the system does when a process dies
    again = other.ask(3)
    assert again.user_attrs[RETRY] == 0
    assert again.suggest_float("x", 0, 1) == value
    assert [trial.state.name for trial in other.all()] == ["FAIL", "RUNNING", "RUNNING"]
    assert other.ask(2) is None
    other.close()


def test_a_trial_is_given_up_after_three_tries(tmp_path):
    mine = shared(tmp_path)
    for _ in range(3):
        mine.fail(mine.ask(1), "no luck")
    assert [trial.number for trial in mine.broken()] == [2]
    fresh = mine.ask(1)
    assert RETRY not in fresh.user_attrs
    mine.close()


def test_a_line_without_its_end_is_cut_off(tmp_path):
    mine = shared(tmp_path)
    mine.tell(mine.ask(2), (0.5, 1.0), {})
    mine.close()
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole + b'{"op_code": 5, "wor')
    mend(tmp_path / JOURNAL)
    assert (tmp_path / JOURNAL).read_bytes() == whole
    assert len(shared(tmp_path).finished()) == 1


def fill(mine):
    for _ in range(200):
        mine.tell(mine.ask(500), (0.5, 1.0), {"outcomes": "1" * 200})


def test_a_full_disk_is_said(tmp_path):
    out = tmp_path / "full"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", out], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        mine = shared(out)
        (out / "ballast").write_bytes(bytes(48 * 1024))
        with pytest.raises(PruneError, match=r"no room for trials in .* make room and give the same command again"):
            fill(mine)
        (out / "ballast").unlink()
        before = len(shared(out).finished())
        further = shared(out)
        further.tell(further.ask(500), (0.5, 1.0), {})
        assert len(further.finished()) == before + 1
    finally:
        subprocess.run(["umount", "-l", out], check=True)


def test_outcomes_are_kept_short_and_exact():
    assert packed([1.0, 0.0, 1.0]) == "101"
    assert unpacked("101") == [1.0, 0.0, 1.0]
    assert unpacked(packed([0.5, 1.0])) == [0.5, 1.0]


# ---- a metric of one's own --------------------------------------------------------------------------------------------


def by_tokens(model):
    """A made-up score: a model with more work left is better, on 40 items."""
    share = macs(model, None, 160) / WHOLE
    return [1.0 if item < 40 * share else 0.0 for item in range(40)]


WHOLE = macs(make_model().model, None, 160)


def giga(model):
    return macs(model, None, 160) / 1e9


def test_a_trial_that_breaks_off_is_retried(tmp_path):
    loaded, calls = make_model(), []

    def fragile(model):
        calls.append(model)
        if len(calls) == 3:
            raise RuntimeError("the machine hiccuped")
        return by_tokens(model)

    space = vision_space(loaded.model, ["col_ln", "resize"])
    done = tune_language(loaded.model, fragile, by_tokens, giga, tmp_path, space=space, speedup=1.3, trials=5)
    assert len(done.trials) == 5
    assert any("the machine hiccuped" in note for note in done.notes)
    trials = trials_in(tmp_path)
    assert [trial.state.name for trial in trials].count("FAIL") == 1
    assert sum(RETRY in trial.user_attrs for trial in trials) == 1
    assert done.chosen.speedup >= 1.3
    assert done.metric == "right"


def test_a_metric_that_always_breaks_ends_the_search(tmp_path):
    loaded, calls = make_model(), []

    def broken(model):
        calls.append(model)
        if len(calls) > 1:
            raise RuntimeError("out of order")
        return by_tokens(model)

    space = vision_space(loaded.model, ["col_ln", "resize"])
    with pytest.raises(PruneError, match=r"5 trials in a row broke off; the last: .*out of order"):
        tune_language(loaded.model, broken, by_tokens, giga, tmp_path, space=space, trials=5)


def test_a_metric_without_numbers_is_refused(tmp_path):
    loaded = make_model()
    space = vision_space(loaded.model, ["resize"])
    for wrong in (lambda _: [], lambda _: [2.0]):
        with pytest.raises(PruneError, match="a number from 0 to 1 for each item"):
            tune_language(loaded.model, wrong, by_tokens, giga, tmp_path / "out", space=space, trials=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.product
def test_a_small_space_is_searched_to_its_end(tmp_path):
    loaded = make_model()
    space = vision_space(loaded.model, ["resize"])
    done = tune_language(loaded.model, by_tokens, by_tokens, giga, tmp_path, space=space, loss=100, trials=10)
    assert 3 <= len(done.trials) <= 5  # five sides from half the grid of ten on
    assert any("hardly any other recipes" in note for note in done.notes)
