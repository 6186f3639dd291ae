"""The probe world: footage as haystack, cards and movers as needles, and questions of known answer."""
