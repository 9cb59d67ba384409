"""Times of layerlimit beside those of the tools it is compared with, on this machine."""
