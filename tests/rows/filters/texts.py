"""Texts with personal data that nobody has: published examples of each form, and the same with a wrong check."""

# kind -> published examples: ISO 13616's registry, card networks' test numbers, documentation of the numbers' checks
RIGHT = {
    "email": ["ana.ruiz@example.com", "a+b@mail.example.co.uk"],
    "phone": ["+34 912 34 56 78", "(650) 253-0000", "+44 20 7946 0958", "612 345 678", "+525512345678"],
    "card": ["4111 1111 1111 1111", "5555555555554444", "378282246310005", "6011-1111-1111-1117", "30569309025904",
             "3530111333300000", "2223003122003222"],
    "iban": ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "ES91 2100 0418 4502 0005 1332",
             "FR14 2004 1010 0505 0001 3M02 606", "NO93 8601 1117 947"],
    "national_id": ["12345678Z", "12.345.678-Z", "X1234567L", "536-90-4399", "2 95 10 99 126 111 93",
                    "RSSMRA85T10A562S", "390.533.447-05", "12.531.909-2", "20-05536168-2", "BOXW310820HNERXN09",
                    "880320-0016", "131052-308T"],
    "ip": ["8.8.8.8", "2001:4860:4860::8888"],
}  # fmt: skip
# the same forms with another check digit, or an address or number that nobody has
WRONG = {
    "email": ["ana.ruiz@example", "@example.com"],
    "phone": ["+34 012 34 56 78", "12 345", "2024-11-30", "3.14159"],
    "card": ["4111 1111 1111 1112", "1234567890123456", "9780306406157"],
    "iban": ["GB83 WEST 1234 5698 7654 32", "DE89370400440532013001", "ES91 2100 0418 4502 0005 1333"],
    "national_id": ["12345678A", "X1234567M", "666-00-0000", "390.533.447-06", "12.531.909-3", "880320-0018"],
    "ip": ["192.168.1.1", "127.0.0.1", "999.1.1.1", "1.2.3", "::1", "10:30:45"],
}
SENTENCES = ("Write {} down.", "{}", "It is {}, she said; and ({}).", "Mi número: {}\nGracias", "id={} x", "他{}。")
