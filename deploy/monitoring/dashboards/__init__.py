"""The dashboards: one file each, in the order in which a reader opens them."""

from __future__ import annotations

from deploy.monitoring.dashboards.cluster import CLUSTER
from deploy.monitoring.dashboards.memory import MEMORY
from deploy.monitoring.dashboards.overview import OVERVIEW
from deploy.monitoring.dashboards.rewards import REWARDS
from deploy.monitoring.dashboards.rollouts import ROLLOUTS

DASHBOARDS = (OVERVIEW, MEMORY, REWARDS, ROLLOUTS, CLUSTER)
