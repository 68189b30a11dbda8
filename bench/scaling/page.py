"""What is printed: a row for each run, what takes its bytes, and sentences on the largest run that fits."""

import math

from . import messages, room
from .binding import most_identities, most_images, taken
from .plan import GB, MACHINE, Machines, Plan

COLUMNS = (
    *("GPUs", "identities", "images", "classes", "GPU memory", "host memory", "state"),
    *("a step: messages", "sent", "computes", "sends", "a meta step: messages", "sent", "sends", "binds first"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{len(COLUMNS) * '---|'}"


def row(plan: Plan, machines: Machines) -> str:
    """Return a run's row of the table."""
    one = taken(plan, machines)
    share, binds = one.shares(machines), one.binds(machines)
    told = f"{binds} {100 * share[binds]:,.0f} %" + ("" if one.fits(machines) else ", does not fit")
    step, meta = messages.pretraining(plan), messages.meta(plan)
    cells = (
        *(f"{plan.gpus:,}", short(plan.identities), short(plan.images), f"{100 * plan.sample_rate:g} %"),
        *(size(one.of_gpu), size(sum(one.host.values())), size(room.state(plan))),
        *(f"{len(step):,}", size(_sent(step, plan)), time(one.computing), time(one.sending)),
        *(f"{len(meta):,}", size(_sent(meta, plan)), time(one.meta_sending), told),
    )
    return f"| {' | '.join(cells)} |"


def _sent(step, plan):
    return sum(messages.sent(each, plan.gpus) for each in step)


def parts(plan: Plan, machines: Machines) -> str:
    """Return what takes a run's bytes, a line for each place."""
    one = taken(plan, machines)
    places = {"a GPU, pretraining": one.gpu, "a GPU, meta": one.meta, "a machine": one.host, "disk": one.disk}
    gpus = f"{plan.gpus:,} GPU{'s' * (plan.gpus > 1)}"
    lines = [f"{gpus}, {short(plan.identities)} identities, {100 * plan.sample_rate:g} % of the classes a step:"]
    for place, held in places.items():
        lines.append(f"* {place}: {', '.join(f'{what} {size(bytes)}' for what, bytes in held.items())}")
    lines.append(f"* not counted: {size(room.decoded(plan))} for each process that keeps decoded images")
    lines.append(f"* a state takes each process {one.writing:,.0f} s to write, while training goes on")
    return "\n".join(lines)


def largest(plan: Plan, machines: Machines) -> str:
    """Return sentences on the largest runs that fit."""
    lines = [f"The largest run on {plan.gpus} GPUs of {size(machines.gpu)}:"]
    for rate in sorted({1.0, 0.1, plan.sample_rate}, reverse=True):
        one = plan.but(sample_rate=rate)
        identities, images = most_identities(one, machines), most_images(one, machines)
        share = taken(one.but(identities=max(plan.gpus, identities)), machines).shares(machines)
        del share["interconnect"]
        bound = max(share, key=lambda name: share[name])
        lines.append(
            f"* {100 * rate:g} % of the classes a step: {short(identities) if identities else 'no'} identities beside "
            f"{short(plan.images)} images, bound by {bound}; "
            f"{short(images) if images else 'no'} images beside {short(plan.identities)} identities"
        )
    cached = math.floor(machines.host / 2 / min(MACHINE, plan.gpus) / room.decoded(plan.but(images=1)))
    lines.append(f"* kept decoded in the host's memory: {short(cached)} images, for each process keeps all of them")
    return "\n".join(lines)


def size(bytes: float) -> str:
    """Return a size in GB or MB."""
    return f"{bytes / GB:,.1f} GB" if bytes >= GB else f"{bytes / 1e6:,.0f} MB"


def time(seconds: float) -> str:
    """Return a time in milliseconds."""
    return f"{1e3 * seconds:,.0f} ms"


def short(count: int) -> str:
    """Return a count in three digits: 10M, 1B."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)
