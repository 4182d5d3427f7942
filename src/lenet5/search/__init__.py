"""Search: many trainings of one question, on this machine or on several; which params are best, and is it luck."""
