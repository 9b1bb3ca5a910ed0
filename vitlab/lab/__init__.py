"""The lab as a whole: what it plans, how it is trained, what it costs, and how its runs are found again."""

from vitlab.lab.results import Lab

__all__ = ["Lab"]
