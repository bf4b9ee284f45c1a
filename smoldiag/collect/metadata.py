"""What a cloud's metadata service says of this instance. Asked only where firmware or files name that cloud.

One second in all, nothing is asked twice but what may fail for a moment, no proxy, no redirects. SMOLDIAG_METADATA=off
keeps it from being asked at all; SMOLDIAG_METADATA_URL is asked instead of the link-local address.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from smoldiag import redact

ADDRESS = "http://169.254.169.254"  # the same in all clouds: the headers tell them apart
LIMIT_S = 1.0  # for everything
MAX_ANSWER_BYTES = 256 * 1024
OFF, URL = "SMOLDIAG_METADATA", "SMOLDIAG_METADATA_URL"
TOKEN_TTL = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}

Ask = Callable[..., str]  # (path, headers, method=) -> the answer's body; OSError where there is none


def is_off(environ: Mapping[str, str] = os.environ) -> bool:
    return environ.get(OFF, "").lower() in ("off", "0", "no", "false")


def read(
    cloud: str, *, base: str | None = None, limit_s: float = LIMIT_S, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """instance_type, instance, zone ... of this instance; empty where the cloud has no service that is known.

    OSError: nobody answered as this cloud does within `limit_s` seconds.
    """
    import http.client  # 20 ms that most hosts need not spend

    reader = READERS.get(cloud)
    if reader is None:
        return {}
    url = base or environ.get(URL) or ADDRESS
    deadline = time.monotonic() + limit_s
    answer: dict[str, str] = {}
    failure: list[str] = []

    def work() -> None:
        try:
            answer.update(reader(lambda path, headers, method="GET": _ask(url, path, headers, method, deadline)))
        except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
            failure.append(str(error) or type(error).__name__)

    thread = threading.Thread(target=work, daemon=True)  # a name or an answer that drips can't hold us longer
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise OSError(f"the metadata service did not answer within {limit_s:g} s")
    if failure:
        raise OSError(f"the metadata service: {failure[0]}")
    return {key: redact.text(value) for key, value in answer.items() if value}


def _ask(url: str, path: str, headers: Mapping[str, str], method: str, deadline: float) -> str:
    import http.client

    parts = urlsplit(url)
    left = deadline - time.monotonic()
    if left <= 0:
        raise OSError("no time is left")
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=left)
    try:
        connection.request(method, parts.path.rstrip("/") + path, headers=dict(headers))
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES).decode(errors="replace")
        if response.status != 200:
            raise OSError(f"{response.status} {response.reason} for {path}")
        expected = headers.get("Metadata-Flavor")
        if expected and response.headers.get("Metadata-Flavor") != expected:
            raise OSError(f"the answer for {path} is not {expected}'s")
        return body
    finally:
        connection.close()


def _aws(ask: Ask) -> dict[str, str]:
    """IMDSv2: a token first. AWS EC2 user guide, Use the Instance Metadata Service."""
    token = {"X-aws-ec2-metadata-token": ask("/latest/api/token", TOKEN_TTL, method="PUT").strip()}
    names = {"instance_type": "instance-type", "instance": "instance-id", "zone": "placement/availability-zone"}
    return {key: ask(f"/latest/meta-data/{path}", token).strip() for key, path in names.items()}


def _azure(ask: Ask) -> dict[str, str]:
    """learn.microsoft.com, Azure Instance Metadata Service."""
    compute = _object(ask("/metadata/instance/compute?api-version=2021-02-01&format=json", {"Metadata": "true"}))
    return _chosen(
        compute,
        instance_type="vmSize",
        instance="vmId",
        zone="zone",
        region="location",
        scale_set="vmScaleSetName",
    )


def _gcp(ask: Ask) -> dict[str, str]:
    """cloud.google.com, VM metadata: the answers are paths, of which the last part is the name."""
    flavor = {"Metadata-Flavor": "Google"}
    names = {"instance_type": "machine-type", "instance": "id", "zone": "zone"}
    folder = "/computeMetadata/v1/instance/"
    return {key: ask(folder + path, flavor).strip().rpartition("/")[2] for key, path in names.items()}


def _oci(ask: Ask) -> dict[str, str]:
    """docs.oracle.com, instance metadata v2. It may say 404 for a moment while it is updated."""
    header = {"Authorization": "Bearer Oracle"}
    try:
        answer = ask("/opc/v2/instance/", header)
    except OSError:
        answer = ask("/opc/v2/instance/", header)
    names = {"instance_type": "shape", "instance": "id", "zone": "availabilityDomain", "fault_domain": "faultDomain"}
    return _chosen(_object(answer), **names)


def _nebius(ask: Ask) -> dict[str, str]:
    """docs.nebius.com, instance metadata."""
    answer = _object(ask("/v1/instance-data", {"Metadata": "true"}))
    return _chosen(
        answer,
        instance_type="platform",
        instance="id",
        region="region",
        gpu_cluster="gpu_cluster_id",
        fabric="infiniband_fabric",
    )


FIRMWARE = {  # DMI vendor, product or chassis tag -> cloud
    "Amazon EC2": "aws",
    "7783-7084-3265-9085-8269-3286-77": "azure",  # learn.microsoft.com, IMDS: chassis asset tag of all Azure VMs
    "Google Compute Engine": "gcp",
    "OracleCloud.com": "oci",
}


def of_host(dmi: Mapping[str, str] | None, *, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the service says, where the firmware names its cloud and nobody forbids to ask. OSError: no answer."""
    cloud = next((FIRMWARE[v] for v in (dmi or {}).values() if v in FIRMWARE), None)
    return read(cloud, environ=environ) if cloud is not None and not is_off(environ) else {}


READERS: dict[str, Callable[[Ask], dict[str, str]]] = {
    "aws": _aws,
    "azure": _azure,
    "gcp": _gcp,
    "oci": _oci,
    "nebius": _nebius,
}


def _object(text: str) -> dict[str, Any]:
    answer = json.loads(text)
    if not isinstance(answer, dict):
        raise ValueError("the answer is no JSON object")
    return answer


def _chosen(answer: Mapping[str, Any], **names: str) -> dict[str, str]:
    return {key: str(answer[name]) for key, name in names.items() if answer.get(name)}
