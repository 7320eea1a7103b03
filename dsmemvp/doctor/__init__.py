"""`dsmemvp doctor`: what a run would find on this node. Each check returns findings; report.py prints them."""
