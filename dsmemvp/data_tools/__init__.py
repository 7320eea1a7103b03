"""Looking at data before a run does: `dsmemvp index`, `dsmemvp data show` and `dsmemvp data check`, a file each."""
