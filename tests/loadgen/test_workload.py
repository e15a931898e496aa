"""Who sends what: tenants of a SPEC and the queries that are theirs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import InputError
from loadgen.traces import make_arrivals, make_parts
from loadgen.workload import Tenant, make_workload


def test_without_tenants_all_queries_are_of_the_runs() -> None:
    """One tenant without a name, which has the SLO and the rows of the run."""
    workload = make_workload("poisson:rate=20+constant:rate=5", duration_s=4, seed=1, slo_ms=36, rows=2)
    assert workload.tenants == (Tenant("", 36, 2),)
    assert not workload.tenant.any()
    np.testing.assert_array_equal(
        workload.intended_s, make_arrivals("poisson:rate=20+constant:rate=5", duration_s=4, seed=1)
    )


def test_each_query_is_its_components_tenants() -> None:
    """Two components of `a` around one without a tenant: every arrival keeps its owner in the order of times."""
    spec = "poisson:rate=30,tenant=a,slo_ms=10+constant:rate=20+bursty:base=0,variant=10,cv2=4,tenant=a"
    workload = make_workload(spec, duration_s=10, seed=4, slo_ms=50)
    first, second, third = (part.times for part in make_parts(spec, duration_s=10, seed=4))
    assert [tenant.name for tenant in workload.tenants] == ["a", ""]
    assert (np.diff(workload.intended_s) >= 0).all()
    np.testing.assert_array_equal(workload.intended_s[workload.tenant == 0], np.sort(np.concatenate((first, third))))
    np.testing.assert_array_equal(workload.intended_s[workload.tenant == 1], second)
    np.testing.assert_array_equal(workload.slo_ms, np.where(workload.tenant == 0, 10, 50))


KINDS = ("constant", "poisson", "bursty:base=1,variant=2,cv2=4", "ramp:start=1,end=3,accel=1,cv2=2")
COMPONENTS = st.tuples(st.sampled_from(KINDS), st.floats(20, 300), st.sampled_from("abc"), st.sampled_from((0, 1, 2)))


@given(st.lists(COMPONENTS, min_size=1, max_size=6), st.integers(0, 2**32))
def test_any_mix_is_in_order_and_complete(components: list[tuple[str, float, str, int]], seed: int) -> None:
    """Whatever is joined: sorted times within the run, each tenant's within the time of its components."""
    spec = "+".join(
        f"{kind}{',' if ':' in kind else ':'}rate={rate},tenant={tenant},from={start},to={start + 1}"
        for kind, rate, tenant, start in components
    )
    workload = make_workload(spec, duration_s=3, seed=seed)
    assert (np.diff(workload.intended_s) >= 0).all()
    assert len(workload.intended_s) == sum(len(part.times) for part in make_parts(spec, duration_s=3, seed=seed))
    for code, tenant in enumerate(workload.tenants):
        seconds = {start for _, _, name, start in components if name == tenant.name}
        assert set(np.floor(workload.intended_s[workload.tenant == code])) <= seconds


def test_what_a_tenant_has_holds_for_all_its_components() -> None:
    """Keys may be given at any of them; what none gives is the run's, or no floor and priority 0."""
    spec = "constant:rate=1,tenant=a,slo_ms=20,min_accuracy=77.5+constant:rate=1,tenant=a,priority=2,slo_ms=20"
    workload = make_workload(f"{spec}+constant:rate=1,tenant=b,rows=8", duration_s=4, slo_ms=50, rows=3)
    assert workload.tenants == (Tenant("a", 20, 3, 77.5, 2), Tenant("b", 50, 8))
    np.testing.assert_array_equal(workload.rows, np.where(workload.tenant == 0, 3, 8))


def test_a_tenant_cannot_have_two_slos() -> None:
    """The second value is refused, with the first."""
    with pytest.raises(InputError, match="constant: slo_ms=30: tenant a has 20 elsewhere"):
        make_workload("poisson:rate=1,tenant=a,slo_ms=20+constant:rate=1,tenant=a,slo_ms=30", duration_s=4)
