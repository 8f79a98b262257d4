"""What is raised for a row that does not have the form of its layout; its words are the row's problem."""


class Unfit(ValueError):
    """The values of a row do not have the form of its layout."""
