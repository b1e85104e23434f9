"""Reading: pictures to words."""
