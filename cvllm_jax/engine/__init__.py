"""The engine: sequences, pages, scheduler, runner, and the public class that joins them."""
