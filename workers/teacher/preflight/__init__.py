"""Preflight: check on a few rows, before any long work, that a teacher and a dataset belong together.

In the order in which a mistake would spoil the rest:

1. the classes that the graph declares, and that it really has, are the dataset's, in its order or by their names
   (``class_columns``);
2. one picture runs through in reasonable time; the outputs are finite;
3. the same pictures give the same outputs in the batches of inference, alone, and once more in another order and
   another batch size (else: training mode, chance, or a graph that mixes the batch);
4. what the outputs are (``output_kind``): logits are made of probabilities, percent and a sigmoid, and how is part of
   the cache's key. What may be several of these is refused until a client states it: as logits they would mislead;
5. the teacher is right more often than predictions that know nothing of the picture;
6. no other order of the classes and no other usual preprocessing is right significantly more often on the same rows.

Points 5 and 6 are of the pictures that have a label. Where none has, ``without_labels`` judges by the entropy of the
outputs, the agreement between two views and the histogram of the classes that are taken.

Points 4 (where it is not stated), 5 and 6 are judgements: a job may insist with ``accept_teacher``, and they become
warnings.

Chance is the accuracy of the same predictions against the same labels in random order, in the mean the sum over classes
of P(predicted) P(label). It explains the hits if one such order in 1 / ``ALPHA`` reaches them: both counts per class
are given, so this suits unbalanced data and constant predictions (Fisher's exact test, by Monte Carlo).

Two ways to read the same rows are compared by McNemar's exact test: of the rows that only one gets right, each is
equally likely to be either's if neither is better. Tests share ``ALPHA`` (Bonferroni). Class orders tried are those
that sorting makes of the names and the best assignment of outputs to classes (Hungarian method), which is found on one
half of the rows and tested on the other.

Where a job augments, ``check_views`` runs the teacher once more, on the pictures that the logits will be of: a teacher
that is right on whole pictures and wrong on their views teaches what it gets wrong. Augmentation is meant to make
pictures harder, so this is a warning, and none unless a good part of the hits is lost beyond chance.

What it does not do: judge how good a teacher is. A weak one passes.

Modules: ``check`` and ``views`` are the two checks, ``report`` their reports; ``rows`` draws the slice, ``score`` holds
the tests; ``output_kind``, ``class_order`` and ``preprocessings`` are points 4 and 6; ``without_labels`` stands in for
5 and 6.

Legend: R rows of the slice, N columns of the output, K classes of the dataset, V usual preprocessings.
"""
