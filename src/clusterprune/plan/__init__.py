"""Plans: which channels stay, and what they take over. Data, not code.

A plan is written as `plan.json` (validated, versioned) beside `plan.safetensors` (its matrices). Nothing in
it is executed, and nothing is unpickled. Both files carry their digests. A plan of version 1 has none for
`plan.json`: such a plan may also be written, or changed, by hand.
"""

from clusterprune.plan.merge import Merge
from clusterprune.plan.origin import describe_example, digest_of, fingerprint, rebuild_example
from clusterprune.plan.plan import Plan

__all__ = ["Merge", "Plan", "describe_example", "digest_of", "fingerprint", "rebuild_example"]
