"""Any mesh keeps its promises: a seed draws the exchanges, the links, what is said, lost and delayed.

Whatever happens, every request ends exactly once, nobody takes a message twice, and when all deadlines
are over nothing is left. A seed that fails is printed, and plays the same again.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh import NEVER, Mesh


@given(seed=st.integers(0, 2**32), size=st.integers(2, 8))
@settings(max_examples=150, deadline=None)
def test_any_mesh_keeps_its_promises(seed: int, size: int) -> None:
    keeps_its_promises(seed, size)


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_many_meshes_keep_their_promises() -> None:
    for seed in range(5_000):
        keeps_its_promises(seed, 2 + seed % 7)


def keeps_its_promises(seed: int, size: int) -> None:
    dice = random.Random(seed)
    mesh = Mesh(pick=lambda ends: dice.choice(ends))
    ids = [f"n{n}" for n in range(size)]
    for id in ids:
        mesh.add(id, relay=dice.random() < 0.7)
    pairs = [(a, b) for a in ids for b in ids if a < b]
    for a, b in dice.sample(pairs, dice.randrange(len(pairs)) + 1):
        mesh.link(a, b)
    requests: list[tuple[str, str]] = []
    for _ in range(40):
        id, name = dice.choice(ids), dice.choice("xyz")
        act = dice.randrange(12)
        if act < 4:
            requests.append((id, mesh[id].request(name, to=dice.choice(["", "", "", *ids]))))
        elif act == 4:
            mesh[id].send(name)
        elif act == 5:
            mesh[id].handle(name, lambda message: dice.choice([1, 2, NEVER]))
        elif act == 6:
            mesh[id].unhandle(name)
        elif act == 7:
            mesh[id].subscribe(name, dice.random() < 0.7)
        elif act == 8 and mesh.linked():
            mesh.cut(*dice.choice(sorted(map(sorted, mesh.linked()))))
        elif act == 9:
            mesh[id].publish(name)
        elif act == 10:
            mesh.advance(dice.random())
        else:
            for _ in range(dice.randrange(20)):
                mesh.step()
    mesh.settle()
    mesh.advance(120)
    assert mesh.leftovers() == {}, seed
    for id, request in requests:
        assert len(mesh[id].replies[request]) == 1, (seed, id, request)
    for node in mesh.nodes.values():
        for taken in (node.handled, node.published):
            assert len({message.id for message in taken}) == len(taken), seed
    handled = [message.id for node in mesh.nodes.values() for message in node.handled]
    assert len(set(handled)) == len(handled), seed
