"""The life of a run: started, trained, saved, stopped, resumed, ended."""
