"""What a run tells beside its scores, of domains that are small, damaged or alone."""

import numpy as np
import pytest
import torch
from evaluation_fakes import class_folder

from fastmfr.config import parse
from fastmfr.domains import open_domain
from fastmfr.evaluate import embed_and_score
from fastmfr.protocols import gallery_probe
from fastmfr.results import TargetResult
from fastmfr.training.data import preprocess
from fastmfr.training.diagnose import Diagnosis
from fastmfr.training.people import People, Target
from fastmfr.training.run import Run


class Pixels(torch.nn.Module):
    """The image itself as its embedding."""

    def forward(self, image_B3HW):
        return image_B3HW.flatten(1)


@pytest.fixture
def diagnosis(tmp_path):
    """A function: a Diagnosis of the source folders and the target folder named, and what it takes to score that."""

    def make(*sources, target):
        config, _ = parse([f"--folder={tmp_path}", "--data.size=16", "--evaluate.batch_images=10"])
        domains = [open_domain(tmp_path / name) for name in sources]
        scored = open_domain(tmp_path / target)
        pairs = gallery_probe(scored.offsets)
        targets = {target: Target(scored, pairs, unseen=target not in sources)}
        people = People({}, {domain.name: domain for domain in domains}, {}, targets)
        run = Run(config, tmp_path, torch.device("cpu"), None, people, data={}, decoding={"vet": True})
        return Diagnosis(run), scored, pairs, preprocess(config.data)

    return make


def gap_of(found, scored, pairs, look):
    _, embedding_ND, bad = embed_and_score(Pixels(), scored, pairs, look, "cpu", vet=True)
    found.of_target(scored.name, "mfr", embedding_ND, bad)
    return found.gap(Pixels())


def test_a_damaged_image_of_a_source_is_left_out_of_the_gap(diagnosis, tmp_path):
    class_folder(tmp_path / "a")
    class_folder(tmp_path / "b", people=5)
    (tmp_path / "a" / "p03" / "1.jpg").write_bytes(b"no picture")
    found = gap_of(*diagnosis("a", target="b"))
    assert (found.domains, found.unseen) == (["a", "b"], [False, True])
    assert (found.people, found.images) == ([12, 5], [35, 15])


def test_domains_of_few_people_are_drawn_with_those_there_are(diagnosis, tmp_path):
    class_folder(tmp_path / "a", people=3)
    class_folder(tmp_path / "b", people=2)
    diagnosis("a", target="b")[0].draw_domains(tmp_path / "domains.png")
    assert (tmp_path / "domains.png").stat().st_size > 0


def test_a_domain_of_one_person_has_no_place_in_the_gap_and_one_domain_has_none(diagnosis, tmp_path):
    class_folder(tmp_path / "a")
    class_folder(tmp_path / "b", people=5)
    class_folder(tmp_path / "alone", people=1)
    assert gap_of(*diagnosis("a", "alone", target="b")).domains == ["a", "b"]
    assert gap_of(*diagnosis("alone", target="b")) is None
    assert gap_of(*diagnosis("b", target="b")) is None


def test_a_wrong_label_comes_first_and_is_named_and_drawn(diagnosis, tmp_path):
    class_folder(tmp_path / "a")
    class_folder(tmp_path / "b")
    (tmp_path / "b" / "p03" / "1.jpg").write_bytes((tmp_path / "b" / "p07" / "2.jpg").read_bytes())
    found, scored, pairs, look = diagnosis("a", target="b")
    scores, embedding_ND, bad = embed_and_score(Pixels(), scored, pairs, look, "cpu", vet=True)
    hardest = found.of_target("b", "mfr", embedding_ND, bad)
    genuine, impostor = hardest.genuine[0], hardest.impostor[0]
    assert "p03/1.jpg" in (genuine.gallery_key, genuine.probe_key)
    assert {impostor.gallery_identity, impostor.probe_identity} == {"p03", "p07"}
    assert impostor.cosine > 0.9
    found.draw_hardest({"b": TargetResult(models={"mfr": scores}, hardest=hardest)}, tmp_path / "hardest.png")
    assert (tmp_path / "hardest.png").stat().st_size > 10_000


def test_the_pictures_are_those_of_the_images_asked_for_in_their_order(diagnosis, tmp_path):
    class_folder(tmp_path / "a")
    found, scored, _, look = diagnosis("a", target="a")
    asked = np.array([30, 2, 2, 17, *range(12)])  # more than a batch
    got = found._pixels(scored, asked)
    assert got.shape == (16, look.size, look.size, 3)
    assert np.array_equal(got[1], got[2])
    assert np.array_equal(got[1], got[6])
    assert not np.array_equal(got[0], got[1])
