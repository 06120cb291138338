"""The rules of the FOCUS linter: what each asks, what breaks otherwise, and what to write instead.

Rules of this file:
- An error is what a reader of the file gets wrong figures from, or what a validator refuses; all else is a warning.
- docs/focus.md lists them all, and says which of them the validators that this project runs let pass.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. meaning: what must hold; effect: what breaks otherwise; fix: what to write."""

    id: str
    meaning: str
    effect: str
    fix: str
    is_error: bool = True


def _rule(id: str, meaning: str, effect: str, fix: str) -> Rule:
    return Rule(id=id, meaning=meaning, effect=effect, fix=fix)


def _warning(id: str, meaning: str, effect: str, fix: str) -> Rule:
    return Rule(id=id, meaning=meaning, effect=effect, fix=fix, is_error=False)


_ALL = (
    # -- the file's columns ---------------------------------------------------------------------------------
    _rule("column-missing", "Every mandatory column is there.", "readers refuse the file", "add the column"),
    _rule("column-unknown", "A column is one of this FOCUS version, or its name begins with x_.",
          "readers take it for another version", "rename it to x_PascalCase, or leave it out"),
    _rule("column-twice", "No two columns have the same name.", "one of them is lost", "remove one"),
    _rule("column-order", "Custom columns come after those of the standard.",
          "readers by position take the wrong one", "move the x_ columns to the end"),
    _rule("column-name", "A custom column is x_ and PascalCase.", "readers that map x_ names miss it",
          "write such as x_ChargeId"),
    _rule("row-width", "Every row has as many cells as the header.", "its values stand under other names",
          "quote cells with commas or line breaks"),
    # -- single cells ---------------------------------------------------------------------------------------
    _rule("null", "A column that may not be null has a value.", "the row belongs to nothing", "fill it"),
    _rule("blank", "A text is not made of spaces alone.", "it is neither a name nor null", "leave the cell empty"),
    _rule("text-control", "A text has no control characters.", "readers cut or refuse it, and nobody sees why",
          "remove them, or write %XX"),
    _warning("placeholder", "A text is no word for null.", "groups by it have a value that is none",
             "leave the cell empty"),
    _rule("number-format", "A number is digits with at most one point: no currency, unit or fraction.",
          "the cell is no number", "write such as 1234.5"),
    _rule("number-exponent", "A number has no exponent.", "spreadsheets and sums drop its digits",
          "write it in full: 0.00000035"),
    _rule("number-sign", "A positive number has no sign.", "the cell is text to strict readers", "remove the +"),
    _rule("number-separator", "A number has no thousands separator, and its decimal sign is a point.",
          "readers take it for another number", "write such as 1234.5"),
    _rule("number-zeros", "A number has no zeros before its digits.", "readers take it for text", "write 7, not 007"),
    _rule("number-point", "A decimal column has a point in some cell, so that it is not taken for whole numbers.",
          "readers that guess types make it an integer column", "write whole numbers as 1.0"),
    _rule("number-binary", "A decimal column of a Parquet file is of decimals or text, not of binary fractions.",
          "0.1 is not 0.1", "write decimals"),
    _rule("price-negative", "A unit price is not negative.", "credits hide in prices",
          "put the sign on the quantity"),
    _rule("time-format", "A time is YYYY-MM-DDTHH:MM:SSZ, in UTC.", "charges fall into another period",
          "convert it to UTC and write Z"),
    _rule("time-real", "A time exists.", "readers refuse the row", "write a day and an hour that there are"),
    _rule("currency-code", "A currency is an ISO 4217 code.", "amounts can't be converted", "write such as EUR"),
    _rule("choice", "A column with fixed values has one of them.", "the row is in no group", "write one of them"),
    _rule("unit-format", "A unit is plural, and has a whole number before it or none: GB, 1000 Requests.",
          "quantities can't be compared", "write such as 1000 Requests"),
    _rule("json-invalid", "A JSON column has an object.", "its content is lost to readers", 'write such as {"a":"b"}'),
    _rule("json-nested", "Values of tags and details are text, numbers, true, false or null.",
          "readers of flat tags lose them", "write the inner keys as keys of their own"),
    _rule("json-key-twice", "No key stands twice in an object.", "one of its values is lost", "keep one"),
    _rule("details-key", "A key of SkuPriceDetails is FOCUS's own or begins with x_.",
          "it may clash with a later version", "write x_ before it"),
    _rule("cell-formula", "No text begins as a formula does.", "a spreadsheet runs it", "put an apostrophe before it"),
    _warning("text-guessed", "A text column does not hold numbers or times alone.",
             "readers that guess types change it (007 becomes 7), and the official validator fails its type",
             "choose identifiers with a letter, such as acct-4711"),
    # -- within a row ---------------------------------------------------------------------------------------
    _rule("period-order", "A period ends after it begins.", "the row has no time", "put start and end in order"),
    _rule("period-end", "A period's end is exclusive: the first moment after it.",
          "a second is in no period, and joins on period ends find nothing", "write 00:00:00Z of the next day"),
    _rule("charge-outside", "A charge lies in its billing period, unless it is a correction.",
          "a month's charges and its bill differ", "use the period that bills it, or ChargeClass Correction"),
    _rule("correction-period", "A correction is about a charge before its billing period.",
          "the open month corrects itself", "keep the original charge period, or leave ChargeClass empty"),
    _rule("list-product", "ListUnitPrice x PricingQuantity is ListCost, to the last digit.",
          "costs can't be checked against the price list", "write the exact product; round BilledCost alone"),
    _rule("contracted-product", "ContractedUnitPrice x PricingQuantity is ContractedCost, to the last digit.",
          "costs can't be checked against the contract", "write the exact product; round BilledCost alone"),
    _rule("pricing-currency-price", "Prices in the pricing currency times the rate are the unit prices.",
          "the conversion can't be followed", "multiply by the month's rate, exactly"),
    _rule("pricing-currency-cost", "Without a conversion PricingCurrencyEffectiveCost is EffectiveCost.",
          "two totals of one month differ", "write the same amount"),
    _rule("billed-far", "BilledCost is ContractedCost, rounded.", "somebody pays what no price says",
          "round, and give the remainder to the largest ones"),
    _rule("effective-other", "EffectiveCost of taxes, credits and adjustments is BilledCost.",
          "amortised totals miss it", "write the billed cost"),
    _warning("purchase-effective", "EffectiveCost of a purchase that covers later charges is 0.",
             "it counts twice, once as usage is covered; the official validator wants 0 for every purchase",
             "write 0.0, or another ChargeCategory"),
    _warning("usage-negative", "A negative charge is a correction or a credit.", "usage of nobody is taken back",
             "write ChargeClass Correction"),
    _rule("usage-incomplete", "Usage and purchases have a SKU, a price, a quantity and a pricing category.",
          "the charge can't be explained", "fill the column, or mark the row as a correction"),
    _rule("tax-priced", "Taxes have no SKU, price or quantity.", "the tax counts as usage", "leave the cell empty"),
    _rule("consumed-missing", "Usage says what was consumed.", "unit costs can't be told", "fill ConsumedQuantity"),
    _rule("consumed-elsewhere", "Only usage consumes.", "consumption counts what nobody used",
          "leave ConsumedQuantity and ConsumedUnit empty"),
    _rule("unit-alone", "A quantity has a unit, and a unit a quantity.", "the number means nothing",
          "fill both or none"),
    _rule("frequency-purchase", "A purchase is not usage-based.", "it is forecast from usage",
          "write One-Time or Recurring"),
    _rule("details-alone", "SkuPriceDetails belong to a SkuPriceId.", "they describe nothing", "leave the cell empty"),
    _rule("name-alone", "A name or type belongs to an id.", "it names nothing", "fill the id, or leave it empty"),
    _rule("name-missing", "Sub accounts, regions and allocated resources have a name, resources a type.",
          "reports show ids", "fill it"),
    _rule("name-repeats", "A resource's name is not its id again.", "it says nothing", "leave the cell empty"),
    _rule("commitment-status", "A commitment status belongs to a commitment.", "usage counts as covered",
          "leave the cell empty"),
    _rule("subcategory", "A service subcategory belongs to its category.", "the row is in two groups",
          "API Management belongs to Integration"),
    _rule("unpriced", "What has no price has no row.", "what is unknown counts as 0", "leave the row out"),
    # -- shares of shared costs ------------------------------------------------------------------------------
    _rule("allocated-alone", "Allocated columns belong to an AllocatedMethodId.", "the share has no origin",
          "fill AllocatedMethodId, or leave them empty"),
    _rule("allocated-details", "AllocatedMethodDetails have Elements with ratios from 0 to 1, quantities with units.",
          "the split can't be followed", 'write {"Elements":[{"AllocatedRatio":0.5}]}'),
    _rule("allocated-ratio", "The ratios of one origin charge sum to 1.", "a part of the cost is lost or made",
          "share the rest by largest remainder"),
    _rule("allocated-origin", "Rows of one origin charge agree in all but Allocated columns, costs and quantities.",
          "the origin charge can't be put together again", "write the origin's values in each"),
    _rule("allocated-tags", "AllocatedTags do not repeat Tags.", "tags count twice", "leave them out of one"),
    # -- across rows -----------------------------------------------------------------------------------------
    _rule("price-parent", "A SkuPriceId belongs to one SkuId.", "prices can't be looked up", "give each SKU its own"),
    _rule("price-changes", "A SkuPriceId has one list price.", "prices can't be looked up",
          "give each price an id of its own"),
    _rule("currency-mixed", "A billing account has one currency.", "its costs have no sum",
          "write the account's currency, or give each currency an account"),
    _warning("meter-changes", "A SkuId has one SkuMeter.", "what a SKU measures is unclear", "write one of them"),
    _rule("charge-twice", "An x_ChargeId stands once, corrections aside.", "the charge counts twice", "remove one row"),
    _rule("total", "BilledCost sums to the expected total.", "the file is not the bill", "write all rows, each once"),
)  # fmt: skip

RULES = {rule.id: rule for rule in _ALL}
