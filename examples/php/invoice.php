<?php
// The page as it may have stood on a web server for years: it reads $order and prints HTML.
foreach (['number', 'customer', 'items'] as $field) {
    if (empty($order[$field])) {
        throw new InvalidArgumentException("the order has no \"$field\"");
    }
}
$text = fn ($value) => htmlspecialchars((string) $value, ENT_QUOTES | ENT_SUBSTITUTE, 'UTF-8');
$money = fn (int $cents) => number_format($cents / 100, 2, '.', ',');
$total = 0;
?>
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Invoice <?= $text($order['number']) ?></title></head>
<body>
<h1>Invoice <?= $text($order['number']) ?></h1>
<p>For <?= $text($order['customer']) ?></p>
<table>
<?php foreach ($order['items'] as $item): ?>
<?php $sum = $item['quantity'] * $item['cents']; $total += $sum; ?>
<tr><td><?= $text($item['name']) ?></td><td><?= $item['quantity'] ?></td><td><?= $money($sum)
?></td></tr>
<?php endforeach ?>
</table>
<p>Total <?= $money($total) ?></p>
</body>
</html>
