"""Moved to slaterl.bounds. To delete once no branch imports it from here."""

from slaterl.bounds import *  # noqa: F403
