"""One run on a GPU machine: a plan of steps (`steps`), and what runs them (`run`)."""
