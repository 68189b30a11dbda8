"""bench/proof/over_seeds.py: gains over a base, with intervals over seeds, out of rows with and without people."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "bench" / "proof"))

import over_seeds

GAINS = {1: {"a": 4.0, "b": 6.0}, 2: {"a": 6.0, "b": 8.0}, 3: {"a": 8.0}}  # of mfr over its base, in points


def of_people(percent):
    """A score of two people with one and three probes whose weighted mean is `percent`."""
    one, other = percent / 100 - 0.03, percent / 100 + 0.01
    return {
        "probes": [1, 3],
        "impostors": 9,
        **{metric: [one, other] for metric in ("tar_0.01", "tar_0.001", "rank1", "auc", "eer")},
    }


def means(percent):
    return {"tar_0.01": percent, "auc": percent, "eer": percent}


def rows(score):
    for seed, domains in GAINS.items():
        for domain, gain in domains.items():
            for name, percent in (("base", 40.0), ("mfr", 40.0 + gain)):
                scores = {domain: score(percent), "photos": score(percent - 10)}
                yield {"seed": seed, "left_out": domain, "name": name, "scores": scores}


def printed(capsys, monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["over_seeds.py", *map(str, argv)])
    over_seeds.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("score", [of_people, means])
def test_gains_and_their_intervals(tmp_path, capsys, monkeypatch, score):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"note": "how it was made"}, *rows(score)])))
    text = printed(capsys, monkeypatch, path)
    figure = "+6.7 (2.9 to 10.5)"  # of 5, 7 and 8: 6.667 +- 4.303 x 1.528 / sqrt(3)
    assert f"| mfr | 5 | {figure} | {figure} | {figure} |\n" in text
    assert "| b | +7.0 (-5.7 to 19.7) |" in text  # of 6 and 8: 12.706 x 1.414 / sqrt(2)
    assert "mfr over cosface" not in text  # which no row has
    assert f"{figure} | {figure} |\n" in printed(capsys, monkeypatch, path, "--set", "photos")


def test_a_row_that_two_files_have_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(means))))
    with pytest.raises(SystemExit, match="seed 1, a left out, base was in a file before"):
        over_seeds.read([path, path])
