from raymlops.answer_loss import AnswerLoss
from raymlops.monitor.skill.label_classes import LabelClasses

TEXTS = AnswerLoss("class", "kind")
TWO = AnswerLoss("class", "kind", positive="yes", negative="no")
NUMBER = AnswerLoss("number", "price", scale=2.0)


def test_texts_are_numbered_in_order_and_others_are_none():
    """A class that the reference has none of is not known."""
    classes = LabelClasses.of(TEXTS, ["b", "a", "a", "c"])
    assert classes.codes(TEXTS, ["c", "a", "x", 1]).tolist() == [2, 0, -1, -1]
    assert (classes.count, classes.name_of(2)) == (3, "c")


def test_two_classes_are_one_and_zero_however_they_are_written():
    """As texts of the rule, or as 1 and true."""
    assert LabelClasses.of(TWO, ["no"]).codes(TWO, ["yes", "no", "maybe"]).tolist() == [1, 0, -1]
    flag = AnswerLoss("probability", probabilities=("p",), positive=True, negative=False)
    assert LabelClasses.of(flag, [1]).codes(flag, [True, "0", "x"]).tolist() == [1, 0, -1]


def test_numbers_are_binned():
    """At quantiles: 0 to 9 in ten bins, and beyond them in the outer ones."""
    classes = LabelClasses.of(NUMBER, list(range(10)))
    assert classes.count == 10
    assert classes.codes(NUMBER, [-5, 0.5, 99, "x"]).tolist() == [0, 0, 9, -1]


def test_very_many_classes_are_pooled():
    """The 59 commonest are told apart; all others, unknown ones too, are one."""
    labels = [at for at in range(100) for _ in range(100 - at)]
    whole = AnswerLoss("class", "index")
    classes = LabelClasses.of(whole, labels)
    assert classes.count == 60
    assert classes.codes(whole, [0, 58, 59, 1000, "x"]).tolist() == [0, 58, 59, 59, 59]


def test_labels_of_a_recipe_are_what_they_are_written_as():
    """Lists and texts are classes, more than twenty numbers are binned."""
    own = AnswerLoss("recipe")
    classes = LabelClasses.of(own, [[1, 2], "a"])
    assert classes.codes(own, ["a", [1, 2], [2, 1]]).tolist() == [0, 1, -1]
    assert LabelClasses.of(own, [at / 10 for at in range(50)]).count == 10


def test_whole_numbers_of_any_size_are_numbers():
    """Those that are beyond every bin are none."""
    classes = LabelClasses.of(AnswerLoss("recipe"), [each / 7 for each in range(100)])
    assert classes.codes(AnswerLoss("recipe"), [2**64, 10**400]).tolist() == [classes.count - 1, -1]


def test_they_are_kept_as_json():
    """And are the same again."""
    for classes in (LabelClasses.of(TEXTS, ["a", "b"]), LabelClasses.of(NUMBER, [1, 2, 3])):
        assert LabelClasses.from_dict(classes.to_dict()) == classes
