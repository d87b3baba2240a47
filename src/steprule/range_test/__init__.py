"""The learning-rate range test: what the loss does while the lr rises over many decades."""

from steprule.range_test.range_test import lr_range_test as lr_range_test
from steprule.range_test.result import LRRangeTest as LRRangeTest
