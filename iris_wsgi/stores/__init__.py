"""Where what must outlive a process is kept: jobs, embedded or across machines."""
