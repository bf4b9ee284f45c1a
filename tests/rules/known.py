"""Facts as cases give them."""

from smoldiag.facts import Bench, Cluster, Host, Launch
from smoldiag.rules import Known

Facts = Known | Bench | Launch | Host | Cluster | tuple[Bench, Cluster]


def known(facts: Facts) -> Known:
    match facts:
        case Known():
            return facts
        case Host():
            return Known(cluster=Cluster(hosts=(facts,)))
        case Cluster():
            return Known(cluster=facts)
        case Launch():
            return Known(launch=facts)
        case Bench():
            return Known(bench=facts)
        case (bench, cluster):
            return Known(bench=bench, cluster=cluster)
