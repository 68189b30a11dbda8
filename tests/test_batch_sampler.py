"""Batches of dataset indices for a DataLoader: what they hold, how epochs go on, resuming, pickling and refusals."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fastmfr.batch_sampler import PairBatchSampler, SplitBatchSampler
from fastmfr.meta import splits_of_batch
from fastmfr.sampler import GroupedDomainSampler

B = 6


def labelled(people=10, images=3, domains=3):
    """(label_N, domain_N) in no order: people of each domain with 2 up to `images` + 1 images each."""
    rng = np.random.default_rng(0)
    label = np.concatenate([np.full(2 + k % images, k) for k in range(people * domains)])
    order = rng.permutation(len(label))
    return label[order], label[order] // people


def sampler(kind=PairBatchSampler, **options):
    return kind(*labelled(), **{"batch_identities": B, "seed": 3} | options)


class Images(Dataset):
    """Each image holds its own number."""

    def __len__(self):
        return len(labelled()[0])

    def __getitem__(self, index):
        label, domain = labelled()
        return torch.full((3, 2, 2), float(index)), label[index], domain[index]


def test_a_batch_holds_galleries_then_probes_of_the_same_labels():
    label, domain = labelled()
    for batch in sampler(steps=40):
        gallery, probe = np.reshape(batch, (2, B))
        assert (label[gallery] == label[probe]).all()
        assert (gallery != probe).all()
        assert len(set(label[gallery])) == B
        assert np.bincount(domain[gallery]).tolist() == [B // 3] * 3


def test_it_draws_what_the_grouped_sampler_draws():
    label, domain = labelled()
    order = np.lexsort([label, domain])
    counts = [np.bincount(label[domain == d])[d * 10 :] for d in range(3)]
    own = GroupedDomainSampler([np.append(0, np.cumsum(count)) for count in counts], B, seed=3)
    first = np.append(0, np.cumsum(np.bincount(domain)))
    for step, batch in enumerate(sampler(steps=20)):
        pairs = own.batch(step)
        at = first[pairs.domain]
        assert batch == order[np.concatenate([at + pairs.gallery, at + pairs.probe])].tolist()


def test_an_epoch_goes_on_where_the_last_one_ended():
    long, short = sampler(steps=12), sampler(steps=4)
    whole = list(long)
    assert [*short, *short, *short] == whole
    short.set_epoch(1)
    assert list(short) == whole[4:8]
    short.set_step(6)  # a trainer that took six steps
    assert len(short) == 4
    assert [*short, *short] == whole[6:12]
    begun = iter(short)
    short.set_epoch(0)  # as Lightning does when it resumes
    assert next(begun) == whole[0]
    assert list(short) == whole[4:8]


def test_an_epoch_draws_as_many_images_as_there_are():
    images = len(labelled()[0])
    assert len(sampler()) == images // (2 * B)
    assert len(sampler(rank=1, world=2)) == images // (4 * B)
    assert len(sampler(SplitBatchSampler, batch_identities=2)) == images // (3 * 4 * 2)
    assert len(PairBatchSampler([0, 0, 1, 1, 2, 2], batch_identities=3)) == 1


def test_ranks_together_draw_what_one_rank_would():
    ranks = [sampler(batch_identities=3, rank=rank, world=2, steps=10) for rank in range(2)]
    for alone, *parts in zip(sampler(steps=10), *ranks, strict=True):
        halves = [np.reshape(part, (2, 3)) for part in parts]
        assert np.concatenate(halves, axis=1).ravel().tolist() == alone


def test_the_ranks_of_torch_are_the_default(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    assert list(sampler(steps=5)) == list(sampler(steps=5, rank=1, world=2)) != list(sampler(steps=5, rank=0, world=2))


@pytest.mark.parametrize("kind", [PairBatchSampler, SplitBatchSampler])
@pytest.mark.parametrize("copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy], ids=["pickle", "copy"])
def test_a_copy_goes_on_like_the_original(kind, copied):
    first = sampler(kind, steps=3)
    list(first)
    second = copied(first)
    assert list(first) == list(second)
    assert second.dropped == first.dropped


def test_no_person_of_two_domains_comes_twice_in_a_batch():
    label = np.repeat(np.arange(8), 4)
    domain = np.tile([0, 0, 1, 1], 8)  # everybody has two images in both domains
    for batch in PairBatchSampler(label, domain, batch_identities=8, steps=30):
        gallery, probe = np.reshape(batch, (2, 8))
        assert sorted(label[gallery]) == list(range(8))
        assert (domain[gallery] == domain[probe]).all()


def test_names_serve_as_labels_and_domains_and_weights_name_domains():
    label, domain = (np.array([f"{what}{k}" for k in column]) for what, column in zip("pd", labelled(), strict=True))
    weighted = PairBatchSampler(label, domain, batch_identities=B, steps=50, weights={"d0": 4.0})
    assert weighted.names == ["d0", "d1", "d2"]
    drawn = np.concatenate([domain[batch] for batch in weighted])
    assert (drawn == "d0").mean() == pytest.approx(4 / 6, abs=0.01)
    as_objects = PairBatchSampler(label.astype(object), domain.astype(object), batch_identities=B, steps=50)
    assert list(as_objects) == list(PairBatchSampler(label, domain, batch_identities=B, steps=50))
    assert list(PairBatchSampler(torch.tensor(labelled()[0]), batch_identities=B, steps=2))


def test_labels_of_one_image_are_dropped_and_counted_or_paired_with_themselves():
    label = [0, 0, 1, 2, 2, 3, 3]
    dropping = PairBatchSampler(label, batch_identities=3, steps=5)
    assert dropping.dropped == {"0": 1}
    assert all(2 not in batch for batch in dropping)
    (batch,) = PairBatchSampler(label, batch_identities=4, steps=1, single="augment")
    assert batch.count(2) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_splits_come_through_a_data_loader(workers):
    label, domain = labelled()
    batches = sampler(SplitBatchSampler, steps=2)
    loader = DataLoader(Images(), batch_sampler=batches, num_workers=workers)
    assert len(loader) == 2
    for image, label_K, domain_K in loader:
        splits = splits_of_batch(image, domain_K, batches.splits)
        assert len(splits) == batches.splits == 3
        for left_out, (train, test) in enumerate(splits):
            assert set(test.domain_B.tolist()) == {left_out}
            assert set(train.domain_B.tolist()) == {0, 1, 2} - {left_out}
            for part in (train, test):
                gallery, probe = (images[:, 0, 0, 0].int() for images in (part.gallery_B3HW, part.probe_B3HW))
                assert (label[gallery] == label[probe]).all()
                assert (domain[gallery] == part.domain_B.numpy()).all()
                assert len(gallery) == B
        assert (label_K.numpy() == label[image[:, 0, 0, 0].int()]).all()


@pytest.mark.parametrize(
    ("images", "domains"), [(torch.zeros(10, 3, 2, 2), torch.zeros(10)), (torch.zeros(24, 3, 2, 2), torch.zeros(12))]
)
def test_images_that_are_no_splits_are_refused(images, domains):
    with pytest.raises(ValueError, match=r"want images in 3 splits .*, got (10|24) images"):
        splits_of_batch(images, domains, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": []}, r"want labels as one whole number or string for each image, .* got float64 of shape \(0,\)"),
        ({"labels": [0.0, 0.0]}, "want labels as one whole number .* got float64"),
        ({"labels": [None, "a"]}, "want labels as one whole number or string .* got object"),
        ({"labels": [[0, 0]]}, r"want labels .* of shape \(1, 2\)"),
        ({"labels": [0, 0, 1, -1]}, "want labels of at least 0, got -1 for image 3; leave images of nobody out"),
        ({"domains": [0, 1]}, "want one domain for each of the 4 labels, got 2 domains"),
        ({"batch_identities": 0}, "batch_identities must be a whole number from 1"),
        ({"batch_identities": 3}, "domain '0' has 2 identities with two images or more, but a batch takes up to 3"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"rank": 1, "world": 1}, "rank must be a whole number from 0 up to 0"),
        ({"rank": 1}, "want rank and world together, got rank 1 and world None"),
        ({"single": "keep"}, "single must be one of"),
        ({"weights": {"x": 1.0}}, "want weights of the domains 0, got one of x"),
        ({"weights": {0: -1.0}}, "want a weight above 0 for each of the domains 0"),
    ],
)
def test_mistakes_are_refused_before_any_work(change, sentence):
    arguments = {"labels": [0, 0, 1, 1], "batch_identities": 2} | change
    with pytest.raises(ValueError, match=sentence):
        PairBatchSampler(**arguments)


def test_splits_want_two_domains_and_enough_people_in_each():
    with pytest.raises(ValueError, match="a split needs two domains or more, got 1"):
        SplitBatchSampler([0, 0, 1, 1], [0, 0, 0, 0], batch_identities=2)
    with pytest.raises(ValueError, match=r"domain '0' has 10 identities .* but a batch takes up to 12"):
        sampler(SplitBatchSampler, batch_identities=12)


@pytest.mark.parametrize("step", [-1, 1.0, True])
def test_steps_and_epochs_are_whole_numbers(step):
    for where in (sampler().set_step, sampler().set_epoch):
        with pytest.raises(ValueError, match="must be a whole number of at least 0"):
            where(step)
