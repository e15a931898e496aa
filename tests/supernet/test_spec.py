"""Control tuples, spaces and tensor descriptions."""

import random

import pytest

from common.supernet.spec import Control, Space, SpecError, TensorSpec


@pytest.mark.parametrize(
    ("control", "subnet_id"),
    [
        (Control((1, 1, 1), (25, 25, 25), (25, 25, 25)), "d1-w25-e25"),
        (Control((2, 1, 3), (50, 50, 50), (100, 100, 100)), "d2.1.3-w50-e100"),
        (Control((2, 1, 3), (50, 25, 50), (100, 50, 25)), "d2.1.3-w50.25.50-e100.50.25"),
        (Control((6,), (25, 50), (100, 100, 75)), "d6-w25.50-e100.100.75"),
        (Control((2, 0), (), ()), "d2.0"),
        (Control((), (25, 25), (50,)), "w25-e50"),
    ],
)
def test_id_is_compact_and_reads_back(control: Control, subnet_id: str) -> None:
    """A part of the id is one number when equal over the stages, one per stage when not, and reads back."""
    assert control.id == subnet_id
    assert Control.parse(subnet_id, (len(control.depth), len(control.width), len(control.expand))) == control


def test_every_subnet_of_a_space_reads_back(space: Space) -> None:
    """Sampled subnets are legal, and their ids name them."""
    rng = random.Random(0)
    for _ in range(300):
        control = space.sample(rng)
        assert space.parse(control.id) == control


@pytest.mark.parametrize(
    "text", ["", "x1", "-", "d1-w25-e25-x1", "d-w25-e25", "d1.-w25-e25", "D1-w25-e25", "d1-w25-e25\n"]
)
def test_other_text_is_no_id(text: str) -> None:
    """Text that is no subnet id is refused with an example of one."""
    with pytest.raises(SpecError, match="one looks like"):
        Control.parse(text, (3, 3, 3))


def test_id_must_be_canonical() -> None:
    """Two names for one subnet would be two cache entries: the longer one is refused, and the right one told."""
    with pytest.raises(SpecError, match="write 'd1-w25-e25'"):
        Control.parse("d1.1.1-w25-e25", (3, 3, 3))


def test_id_of_another_supernet_is_refused(space: Space) -> None:
    """An id with another number of stages says which number is right."""
    with pytest.raises(SpecError, match="has 2 depths, the supernet has 3"):
        space.parse("d1.2-w25-e50")


def test_illegal_entry_is_named(space: Space) -> None:
    """A control outside the space is refused by part, stage and value."""
    with pytest.raises(SpecError, match=r"expand\[1\] is 25, legal are \(50, 100\)"):
        space.parse("d1-w25-e25")


def test_ends_and_size(space: Space) -> None:
    """The smallest and the largest subnet take the first and the last value everywhere; size counts all subnets."""
    assert space.smallest.id == "d1-w25-e25.50.25"
    assert space.largest.id == "d2.3.2-w100-e100"
    assert space.size == 2 * 3 * 2 * 3**3 * 3 * 2 * 2


@pytest.mark.parametrize(
    ("depth", "width", "message"),
    [
        (((2, 1),), ((50,),), r"space.depth\[0\] must ascend"),
        (((),), ((50,),), r"space.depth\[0\] must ascend"),
        (((1,),), ((50, 120),), r"space.width\[0\] is in percent"),
        (((1,), (-1, 1)), ((50,),), r"space.depth\[1\] must ascend from 0"),
    ],
)
def test_illegal_space_is_named(
    depth: tuple[tuple[int, ...], ...], width: tuple[tuple[int, ...], ...], message: str
) -> None:
    """A space must ascend, and stay within 100 percent."""
    with pytest.raises(SpecError, match=message):
        Space(depth, width, ((50,),))


def test_space_goes_through_json(space: Space) -> None:
    """A space written as JSON reads back equal; a missing part is named."""
    assert Space.from_json(space.to_json()) == space
    with pytest.raises(SpecError, match=r"space.width is missing"):
        Space.from_json({"depth": [[1]], "expand": [[50]]})


def test_tensor_spec() -> None:
    """A tensor spec goes through JSON, and knows no other datatypes than the protocol's that models use here."""
    image = TensorSpec("image", "UINT8", (28, 28))
    assert TensorSpec.from_json(image.to_json()) == image
    with pytest.raises(SpecError, match="'FLOAT' is none of"):
        TensorSpec("scores", "FLOAT", (10,))
    with pytest.raises(SpecError, match="needs name, datatype and shape"):
        TensorSpec.from_json({"name": "image"})
