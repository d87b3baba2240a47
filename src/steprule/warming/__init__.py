"""Compiling ahead of time what optimizers need: for containers, clusters and demonstrations."""

from steprule.warming.jobs import DTYPES as DTYPES
from steprule.warming.jobs import Job as Job
from steprule.warming.requests import jobs_for as jobs_for
from steprule.warming.warm import Warmed as Warmed
from steprule.warming.warm import run_jobs as run_jobs
from steprule.warming.warm import warm as warm
