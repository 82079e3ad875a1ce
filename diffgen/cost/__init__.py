"""What exact posteriors over a large set cost, before they are paid for.

``counts`` says what a call reads, holds and sends, from the numbers that streaming and sharding
themselves go by. ``reading`` and ``timing`` measure a sample of the rows of a set, ``estimate``
makes of that the time of a call.
"""
