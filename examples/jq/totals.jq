# A list of orders in, one total for each customer out.
# Always exactly one result: the gate reads one line for each command.
try (
  fromjson
  | group_by(.customer)
  | map({customer: .[0].customer, orders: length, total: (map(.price * .quantity) | add)})
) catch {error: .}
