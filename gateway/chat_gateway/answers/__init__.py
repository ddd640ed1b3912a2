"""What comes back: the choices of a request as the engine makes them, and how they are sent."""
