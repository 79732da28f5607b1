<?php
// The worker around the old page. What speaks with the gate is in ../workers/count.php.
require __DIR__ . '/../workers/count.php';

serve(function (string $body): array {
    $order = json_decode($body, true, 32, JSON_THROW_ON_ERROR);
    ob_start();  // what the page prints is the reply
    try {
        require __DIR__ . '/invoice.php';
        return ['text/html; charset=utf-8', ob_get_contents()];
    } finally {
        ob_end_clean();
    }
});
