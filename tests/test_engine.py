"""The whole service for real: API and engine processes, jobs over HTTP, kills and cancels in between."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client import Client
from service.processes import BackgroundService
from tests.digits import Digits
from tests.test_cluster import actor_processes

pytestmark = pytest.mark.timeout(240)
